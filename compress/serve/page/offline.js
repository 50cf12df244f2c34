// Keeps the page for when its host cannot be reached. While it can, what the host has now is what is shown: no old page stands before a new one.
self.addEventListener("install", (event) => event.waitUntil(caches.open(NAME).then((kept) => kept.addAll(FILES))));

self.addEventListener("activate", (event) => event.waitUntil(caches.keys().then((names) =>
  Promise.all(names.filter((one) => one.startsWith(PREFIX) && one !== NAME).map((one) => caches.delete(one))))));

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || new URL(event.request.url).origin !== location.origin) return;
  event.respondWith(fetch(event.request).catch(async (error) => {
    const found = await caches.match(event.request, { cacheName: NAME, ignoreSearch: true });
    if (!found) throw error;
    return found;
  }));
});
