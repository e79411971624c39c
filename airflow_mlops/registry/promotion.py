"""The challenger becomes champion: the ledger decides who, and the registry's aliases are made to say the same.

The aliases are a projection of the ledger. Whoever writes one looks at the ledger again afterwards, and writes again if it says something else
by then; so the last of all writes, also of a promoter that was frozen in between, is one that agrees with the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from airflow_mlops.exceptions import ModelNotFound, PromotionConflict, RegistryError, RegistryUnavailable
from airflow_mlops.ledger import champions
from airflow_mlops.ledger.champions import Claim, Reign
from airflow_mlops.ledger.store import Store
from airflow_mlops.registry.base import CANDIDATE, CHAMPION, PREVIOUS, ModelRegistry

DIGEST_TAG = "model_digest"
DIGEST_TAGS = ("saved_model_digest", "golden_digest")
_TURNS = 20  # of projecting: more changes of champion than that in a moment are somebody else's loop


@dataclass(frozen=True)
class Promotion:
    """Version `champion` of model `name` was made champion in reign `token`, in place of version `previous`, if anybody."""

    name: str
    champion: int
    previous: int | None
    token: int


def promote(store: Store, registry: ModelRegistry, claim: Claim) -> Promotion:
    """Make the claimed version champion, once per intent, and point the aliases of the registry to whoever is champion by the ledger.

    May be killed anywhere and called again: the promotion and its audit event are one transaction, the aliases are looked at anew.

    :raises PromotionConflict: the champion is no longer the one the version was evaluated against; nothing changed. Or this intent did promote
        it, and another version has taken its place since; the aliases are on that one.
    :raises ModelNotFound: there is no such version (any more); nothing changed, or who was champion before is it again.
    :raises RegistryError: the version's digest is not the one that was evaluated and approved; nothing changed.
    """
    try:
        reign = _crowned(store, registry, claim)
    except ModelNotFound as error:
        _take_back(store, registry, claim, error)
        raise
    latest = champions.current(store, claim.model)
    if latest is not None and latest.token != reign.token:
        raise PromotionConflict(
            f"This run made version {reign.version} of {claim.model!r} champion on {reign.since:%Y-%m-%d %H:%M:%S} UTC, and version "
            f"{latest.version} took its place on {latest.since:%Y-%m-%d %H:%M:%S} UTC. The later one stays. {way_back(claim.model, reign.version)}"
        )
    return Promotion(reign.model, reign.version, reign.previous, reign.token)


def _crowned(store: Store, registry: ModelRegistry, claim: Claim) -> Reign:
    candidate = registry.get(claim.model, claim.version)
    found = candidate.tags.get(DIGEST_TAG)
    if claim.digest is not None and found != claim.digest:
        raise RegistryError(
            f"{claim.model} version {claim.version} has the {DIGEST_TAG} {found}; expected {claim.digest}, which was evaluated and approved. "
            "Somebody changed the version after that. Train it anew; do not release this one."
        )
    reigning(store, registry, claim.model)
    reign = champions.crown(store, claim)
    project(store, registry, claim.model)
    return reign


def _take_back(store: Store, registry: ModelRegistry, claim: Claim, error: ModelNotFound) -> None:
    """Make the previous version champion again, if the claimed one was deleted between the look at it and its alias, now or in an earlier try.

    That is so where the alias stayed on the previous version: a deletion takes the version's own aliases along. The first champion of a model has
    nobody to go back to; reconciliation reports that it is gone.
    """
    reign = champions.current(store, claim.model)
    if reign is None or reign.intent != claim.intent or reign.previous is None or exists(registry, claim.model, reign.version):
        return
    if registry.aliases(claim.model).get(CHAMPION) != reign.previous:
        return
    before = champions.history(store, claim.model)[-2]
    why = {"reason": f"version {reign.version} was deleted while it was made champion: {error}"}
    back = Claim(f"take back:{claim.intent}", claim.model, before.version, reign.version, reign.token, before.digest)
    champions.crown(store, replace(back, kind="taken back", actor=claim.actor, details=why))
    project(store, registry, claim.model)


def reigning(store: Store, registry: ModelRegistry, model: str) -> Reign | None:
    """Return who is champion; one that the registry had before there was a ledger is adopted, with an audit event of that."""
    reign = champions.current(store, model)
    if reign is not None or (version := registry.aliases(model).get(CHAMPION)) is None:
        return reign
    tags = registry.get(model, version).tags
    why = {name: tags[name] for name in DIGEST_TAGS if name in tags}  # by which a rollback knows its files
    who = "the alias 'champion' in the registry"
    claim = Claim(f"adopt:{model}", model, version, None, digest=tags.get(DIGEST_TAG), kind="adopted", actor=who, details=why)
    try:
        return champions.crown(store, claim)
    except PromotionConflict:  # a first champion came meanwhile
        return champions.current(store, model)


def project(store: Store, registry: ModelRegistry, model: str) -> dict[str, int | None]:
    """Make the aliases say what the ledger says, and return those that had to be changed with what they said before.

    :raises ModelNotFound: the champion is no longer in the registry.
    """
    changed: dict[str, int | None] = {}
    for _ in range(_TURNS):
        reign = champions.current(store, model)
        if reign is None:
            return changed
        aliases = registry.aliases(model)
        wrong = {alias: version for alias, version in _wanted(registry, reign, aliases).items() if aliases.get(alias) != version}
        if not wrong:
            return changed
        for alias, version in wrong.items():
            changed.setdefault(alias, aliases.get(alias))
            _point(registry, model, alias, version)
    raise RegistryUnavailable(f"The aliases of {model!r} do not stay as they are set: something else moves them. Find out what, and end it.")


def _point(registry: ModelRegistry, model: str, alias: str, version: int | None) -> None:
    if version is None:
        registry.remove_alias(model, alias)
        return
    try:
        registry.set_alias(model, alias, version)
    except ModelNotFound:
        if alias == CHAMPION:
            raise
        # The way back was deleted since it was looked at: the next look does not want it any more.


def _wanted(registry: ModelRegistry, reign: Reign, aliases: dict[str, int]) -> dict[str, int | None]:
    """Return what each alias of ours must say (None: it must not be there)."""
    wanted: dict[str, int | None] = {CHAMPION: reign.version}  # first: if its version is gone, no other alias has moved
    if reign.previous is not None and (aliases.get(PREVIOUS) == reign.previous or exists(registry, reign.model, reign.previous)):
        wanted[PREVIOUS] = reign.previous  # a version that was deleted cannot have it; reconciliation reports that
    if aliases.get(CANDIDATE) == reign.version:
        wanted[CANDIDATE] = None
    return wanted


def way_back(model: str, version: int) -> str:
    """Return how a person makes an earlier champion the champion again."""
    return (
        f"To bring version {version} back, start the DAG '{model}_rollback' with it, or run 'airflow-mlops rollback {model} --to {version} "
        "--reason WHY --airflow URL'."
    )


def exists(registry: ModelRegistry, model: str, version: int) -> bool:
    """Return whether the registry has a version."""
    try:
        registry.get(model, version)
    except ModelNotFound:
        return False
    return True
