// Shows the present contents of a staff page every few seconds, unless a part of them has the focus.

const part = document.querySelector("[data-reload]");

async function reload() {
  if (document.hidden || part.contains(document.activeElement)) return;
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok || answer.redirected) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const scrolled = [...part.querySelectorAll(".billing-scroll")].map(({ scrollLeft }) => scrollLeft);
  part.replaceChildren(...(page.querySelector("[data-reload]")?.childNodes ?? []));
  for (const [at, place] of scrolled.entries()) {
    const box = part.querySelectorAll(".billing-scroll")[at];
    if (box !== undefined) box.scrollLeft = place;
  }
}

setInterval(() => {
  reload().catch((error) => console.warn("the page could not be read again", error));
}, Number(part.dataset.reload) * 1000);
