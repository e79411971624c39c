"""DAGs for handwritten digits whose stages are pods, the training with a GPU; none where ``[mlops] stage_image`` names no image for them."""

from pathlib import Path

from airflow.sdk import conf

from airflow_mlops.pipelines import ArrayLayout, PipelineSpec, Pod, PodSpec, ReleasePolicy, model_pipelines

if conf.get("mlops", "stage_image"):
    fields = {name: conf.get("mlops", name) for name in ("namespace", "volume_claim", "mount_path")}
    pod = PodSpec(conf.get("mlops", "stage_image"), memory="2Gi", **fields)
    model_pipelines(
        PipelineSpec(
            model="digits_gpu",
            dataset="digits",
            inbox=conf.get("mlops", "inbox"),
            suite="digits_suite.json",
            train_function="digits_model:train",
            code_path=Path(__file__).parent,
            layout=ArrayLayout(input_shape=(8, 8, 1), num_classes=10, scale=1 / 16),
            params={"epochs": 15, "learning_rate": 0.002},
            policy=ReleasePolicy(min_metrics={"accuracy": 0.9}, max_regression=0.02, max_defect_rate=0.1),
            num_shards=3,
            runner=Pod(pod, {"train": pod._replace(image=conf.get("mlops", "stage_image_cuda"), num_gpus=1, memory_ladder=("4Gi",))}),
        )
    )
