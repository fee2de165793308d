/** Register the service worker that the page names; remove this site's when the page names none. */
export async function keepServiceWorker() {
  const { serviceWorker } = navigator; // undefined without a secure context
  if (serviceWorker === undefined) return;
  const script = document.querySelector("meta[name=service-worker]")?.content;
  if (script) {
    await serviceWorker.register(script, { scope: "/" });
    return;
  }
  for (const registration of await serviceWorker.getRegistrations()) await registration.unregister();
}
