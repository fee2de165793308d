import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import vm from "node:vm";

const source = await readFile(new URL("../../templates/service_worker.js", import.meta.url), "utf8");
const CHAT = "/c/1/";
const MESSAGE = { title: "Parley", body: "Your reply is ready.", url: CHAT, tag: "1" };

/** The worker in a browser with these windows; `send` fires an event and waits for its end. */
function worker(windows = []) {
  const listeners = {};
  const done = [];
  const pages = windows.map(([path, visibilityState]) => ({
    url: `https://chat.example.org${path}`,
    visibilityState,
    focus: async () => done.push(["focus", path]),
  }));
  const self = {
    addEventListener: (type, listener) => (listeners[type] = listener),
    clients: { matchAll: async () => pages, openWindow: async (url) => done.push(["open", url]) },
    registration: { showNotification: async (title, options) => done.push(["show", title, options]) },
  };
  const CONFIG = { isOn: true, release: "1", page: "/offline/", files: [], icon: "/icon", badge: "/badge" };
  vm.runInNewContext(source, { self, CONFIG, URL });
  const send = async (type, event) => {
    const ends = [];
    listeners[type]({ ...event, waitUntil: (end) => ends.push(end) });
    await Promise.all(ends);
    return JSON.parse(JSON.stringify(done));
  };
  return { push: () => send("push", { data: { json: () => MESSAGE } }), send };
}

test("a message is shown unless its chat is visible", async () => {
  const shown = ["show", "Parley", { body: MESSAGE.body, tag: "1", icon: "/icon", badge: "/badge", data: { url: CHAT } }];
  assert.deepEqual(await worker().push(), [shown]);
  assert.deepEqual(await worker([[CHAT, "hidden"], ["/", "visible"]]).push(), [shown]);
  assert.deepEqual(await worker([[CHAT, "visible"]]).push(), []);
});

test("a click opens the chat, in its window if there is one", async () => {
  const click = { notification: { close() {}, data: { url: CHAT } } };
  assert.deepEqual(await worker([["/", "visible"]]).send("notificationclick", click), [["open", CHAT]]);
  assert.deepEqual(await worker([[CHAT, "hidden"]]).send("notificationclick", click), [["focus", CHAT]]);
});
