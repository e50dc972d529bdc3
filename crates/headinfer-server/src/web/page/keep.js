// What outlives a reload: the conversation in localStorage, the document, which may be large, in IndexedDB.

const CONVERSATION = "headinfer.conversation";
const STORE = "documents";

export function conversation() {
  try {
    const kept = JSON.parse(localStorage.getItem(CONVERSATION));
    return Array.isArray(kept?.turns) ? kept : null;
  } catch {
    return null;
  }
}

/** Whether it was kept. */
export function keepConversation(conversation) {
  try {
    localStorage.setItem(CONVERSATION, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}

/** A name nobody guesses. randomUUID is for secure contexts only, and a server in a local network is none. */
export function freshName() {
  const random = crypto.getRandomValues(new Uint8Array(16));
  return "page-" + Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The document called `name`, or null. */
export function kept(name) {
  return within("readonly", (store) => store.get(name)).then((found) => found ?? null, () => null);
}

/** Keeps this document alone; whether it could. */
export async function keepDocument(name, document) {
  const replace = (store) => {
    store.clear();
    return document === null ? null : store.put(document, name);
  };
  return within("readwrite", replace).then(() => true, () => false);
}

async function within(mode, work) {
  const base = await opened();
  try {
    return await new Promise((done, fail) => {
      const transaction = base.transaction(STORE, mode);
      const request = work(transaction.objectStore(STORE));
      transaction.oncomplete = () => done(request?.result);
      transaction.onabort = transaction.onerror = () => fail(transaction.error);
    });
  } finally {
    base.close();
  }
}

function opened() {
  return new Promise((done, fail) => {
    const request = indexedDB.open("headinfer", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => done(request.result);
    request.onerror = request.onblocked = () => fail(request.error);
  });
}
