// What the page remembers. A browser may block site data, or have no room for more: then it is
// remembered until the page is closed.

function storage(name) {
  const memory = new Map(); // only what the browser did not take
  return {
    get(key) {
      if (memory.has(key)) return memory.get(key);
      try {
        return window[name].getItem(key);
      } catch {
        return null;
      }
    },
    set(key, value) {
      try {
        window[name].setItem(key, value);
        memory.delete(key);
      } catch {
        memory.set(key, value);
      }
    },
  };
}

export const local = storage("localStorage");
export const session = storage("sessionStorage");
