// The service worker. chatproject/ops/installable.py puts CONFIG in front of it.

const CACHE = `parley-${CONFIG.release}`;

self.addEventListener("install", (event) => {
  self.skipWaiting(); // safe: pages take nothing from the cache while the site can be reached
  if (CONFIG.isOn) event.waitUntil(storeOfflinePage());
});

self.addEventListener("activate", (event) => {
  event.waitUntil(CONFIG.isOn ? takeOver() : removeItself());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (!CONFIG.isOn || request.method !== "GET") return;
  if (request.mode === "navigate") event.respondWith(fetchPage(event));
  else if (CONFIG.files.includes(new URL(request.url).pathname)) event.respondWith(fetchFile(request));
});

self.addEventListener("push", (event) => event.waitUntil(notify(event.data.json())));

self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  event.waitUntil(openChat(event.notification.data.url));
});

self.addEventListener("pushsubscriptionchange", (event) => event.waitUntil(renewSubscription(event)));

/** Show a notification, unless its chat is visible in a window. */
async function notify({ title, body, url, tag }) {
  const windows = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
  const isSeen = (page) => page.visibilityState === "visible" && new URL(page.url).pathname === url;
  if (windows.some(isSeen)) return;
  const { icon, badge } = CONFIG;
  await self.registration.showNotification(title, { body, tag, icon, badge, data: { url } });
}

/** Focus the window that shows the chat, or open one. */
async function openChat(url) {
  const windows = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
  const shown = windows.find((page) => new URL(page.url).pathname === url);
  await (shown === undefined ? self.clients.openWindow(url) : shown.focus());
}

/** Send the subscription that replaces an ended one, unless its user has signed out; the browser may have made it. */
async function renewSubscription({ oldSubscription, newSubscription }) {
  const answer = await fetch(CONFIG.renewal, { headers: { Accept: "application/json" } });
  if (!answer.ok || answer.redirected) return;
  const { key, token } = await answer.json();
  const subscription = newSubscription ?? (await subscribeAgain(key));
  const { endpoint, keys } = subscription.toJSON();
  const old = oldSubscription?.endpoint ?? "";
  const body = new URLSearchParams({ endpoint, p256dh: keys.p256dh, auth: keys.auth, old, csrfmiddlewaretoken: token });
  await fetch(CONFIG.renewal, { method: "POST", body });
}

function subscribeAgain(applicationServerKey) {
  return self.registration.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey });
}

/** Store the page as every visitor has it, without cookies, and the files that it needs. */
async function storeOfflinePage() {
  const cache = await caches.open(CACHE);
  await cache.add(new Request(CONFIG.page, { credentials: "omit", cache: "reload" }));
  await cache.addAll(CONFIG.files);
}

async function takeOver() {
  await removeCaches((name) => name !== CACHE);
  // The browser requests a page while it starts this worker.
  await self.registration.navigationPreload?.enable();
  await self.clients.claim();
}

async function removeItself() {
  await removeCaches(() => true);
  await self.registration.unregister();
}

async function removeCaches(isOld) {
  const names = await caches.keys();
  const old = names.filter((name) => name.startsWith("parley-") && isOld(name));
  await Promise.all(old.map((name) => caches.delete(name)));
}

/** Return the page of the site; the stored page when the site cannot be reached. */
async function fetchPage(event) {
  try {
    return (await event.preloadResponse) ?? (await fetch(event.request));
  } catch (error) {
    const cache = await caches.open(CACHE);
    const page = await cache.match(CONFIG.page);
    if (page === undefined) throw error;
    return page;
  }
}

async function fetchFile(request) {
  try {
    return await fetch(request);
  } catch (error) {
    const cache = await caches.open(CACHE);
    const file = await cache.match(request);
    if (file === undefined) throw error;
    return file;
  }
}
