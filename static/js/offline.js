// The offline page: opens the page that was asked for as soon as the site answers.

const RETRY_EVERY = 5_000; // milliseconds
const small = document.querySelector("link[rel=manifest]").href; // costs the server little

async function retry() {
  if (document.hidden) return;
  try {
    const answer = await fetch(small, { method: "HEAD", cache: "no-store" });
    if (answer.ok) location.reload();
  } catch (error) {
    console.debug("still offline", error);
  }
}

addEventListener("online", retry);
document.addEventListener("visibilitychange", retry);
setInterval(retry, RETRY_EVERY);
document.querySelector("[data-again]").addEventListener("click", (event) => {
  event.preventDefault();
  location.reload();
});
document.querySelector("[data-waiting]").hidden = false;
