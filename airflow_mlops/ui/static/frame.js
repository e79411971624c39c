// Airflow shows this page in an iframe whose sandbox lets no link leave it. The surrounding document, of the same origin, may navigate itself.
if (window.parent !== window) {
  const outer = window.parent.document;

  const follow = () => {
    document.documentElement.style.colorScheme = outer.documentElement.classList.contains("dark") ? "dark" : "light";
  };
  follow();
  const observer = new MutationObserver(follow);
  observer.observe(outer.documentElement, { attributes: true, attributeFilter: ["class"] });
  window.addEventListener("pagehide", () => observer.disconnect());

  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[target="_top"]');
    if (!link) return;
    event.preventDefault();
    const way = outer.createElement("a");
    way.href = link.href;
    way.click();
  });
}
