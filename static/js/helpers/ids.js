/** A fresh name for what this page asks for. (crypto.randomUUID is there only under TLS.) */
export function newClientId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Stands for an id in addresses that the page was rendered with before there was one. */
export const NO_ID = "00000000-0000-0000-0000-000000000000";
