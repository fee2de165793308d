/**
 * The storage of this tab for one user: the next user of the same tab cannot read it. Has the three
 * methods of Storage that are used here.
 */
export function storageOf(user, storage = sessionStorage) {
  const name = (key) => `parley:${user}:${key}`;
  return {
    getItem: (key) => storage.getItem(name(key)),
    setItem: (key, value) => storage.setItem(name(key), value),
    removeItem: (key) => storage.removeItem(name(key)),
  };
}
