// A page of a site may be left for another page of the same site. A load takes wall time, so it must
// not happen in the middle of page time: it is held here until the environment comes to it.
(() => {
  if (window !== top) return;
  const home = globalThis.__dartHome;
  let destination = null;
  let leaving = false;
  navigation.addEventListener('navigate', (event) => {
    const { url, sameDocument } = event.destination;
    if (event.hashChange || sameDocument) return;
    const isDownload = event.downloadRequest != null;
    if (!isDownload && url.startsWith(home)) {
      // What is posted, and what the history holds, only the browser can load; it begins at once.
      leaving = event.formData != null || event.navigationType === 'traverse';
      if (leaving) return;
      destination = url;
    }
    if (event.cancelable) event.preventDefault();
  });
  /** Where the document is about to be left to: null for nowhere. */
  __dart.takeDestination = () => {
    const taken = { url: destination, leaving };
    destination = null;
    return taken.url !== null || leaving ? taken : null;
  };
  __dart.isLeaving = () => leaving;
})();
