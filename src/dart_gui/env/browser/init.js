// Runs in every new document, before the page's own scripts.
(() => {
  // Nothing may move or blink by wall-clock time: the page's clock is ours, CSS has its own.
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(`
    *, *::before, *::after {
      caret-color: transparent !important;
      transition: none !important;
      animation: none !important;
      scroll-behavior: auto !important;
    }
    /* Drawn over the task after its end; a second click of a double click would start it anew. */
    #sync-task-cover { display: none !important; }
  `);
  document.adoptedStyleSheets = [sheet];

  // Scripts that draw random numbers while they load, before the episode is seeded.
  let state = 1;
  Math.random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 4294967296;
  };

  // The clipboard of a browser is shared by all its pages, so another episode would paste into this
  // one. Each page gets its own.
  let clip = '';
  const editable = (e) => e instanceof HTMLTextAreaElement || e instanceof HTMLInputElement;
  const selected = (e) =>
    editable(e) ? e.value.slice(e.selectionStart, e.selectionEnd) : String(getSelection());
  const take = (event) => {
    clip = selected(document.activeElement) || clip;
    if (event.type === 'cut') document.execCommand('delete');
    event.preventDefault();
  };
  addEventListener('copy', take);
  addEventListener('cut', take);
  addEventListener('paste', (event) => {
    document.execCommand('insertText', false, clip);
    event.preventDefault();
  });

  const pictures = new Map(); // by address; held, so that they stay in the cache of the document
  const load = async (url) => {
    if (pictures.has(url)) return;
    const image = new Image();
    pictures.set(url, image);
    image.src = url;
    await image.decode().catch(() => {}); // a picture that cannot be shown is missing each time
  };
  const urlsIn = (css) =>
    Array.from(css.matchAll(/url\(["']?(.*?)["']?\)/g), (match) =>
      new URL(match[1], document.baseURI).href);
  const urlsOf = (element) => {
    const style = getComputedStyle(element);
    const urls = urlsIn(`${style.backgroundImage} ${style.listStyleImage} ${style.content}`);
    if (element instanceof HTMLImageElement && element.src) urls.push(element.src);
    return urls;
  };
  const rulesOf = (sheet) => {
    try {
      return Array.from(sheet.cssRules, (rule) => rule.cssText);
    } catch {
      return []; // a linked sheet cannot be read under file://
    }
  };

  // Typing leaves more behind than can be taken back: undo steps, the focus ring, the clipboard.
  let typed = false;
  const noteTyping = () => { typed = true; };
  for (const type of ['keydown', 'input', 'paste']) addEventListener(type, noteTyping, true);

  const nextFrame = () => new Promise((f) => __pwClock.builtins.requestAnimationFrame(f));

  globalThis.__dart = {
    /** From here on Math.random() is a function of `seed`. */
    seedRandom: (seed) => {
      state = Math.imul(seed ^ (seed >>> 16), 0x85ebca6b);
      state = Math.imul(state ^ (state >>> 13), 0xc2b2ae35);
      state = (state ^ (state >>> 16)) >>> 0;
    },
    /** Whether a picture changes under the mouse: until it is there, its box has another size. */
    hasHoverPictures: () =>
      Array.from(document.styleSheets, rulesOf).flat()
        .some((css) => css.includes(':hover') && css.includes('url(')),
    /** Resolves when the browser has drawn a frame and the page has heard of scrolls. */
    nextFrame,
    /** Undo what an episode did to the document besides its task; false where that cannot be. */
    clear: () => {
      if (typed) return false;
      document.activeElement?.blur();
      getSelection().removeAllRanges();
      scrollTo(0, 0);
      // Tab goes on from the last click: from here, that is from the top of the document.
      const start = document.createElement('button');
      document.body.prepend(start);
      start.focus();
      start.remove();
      return true;
    },
    /** Resolves when every picture and font that the page shows is loaded. */
    settle: async () => {
      const used = Array.from(document.body.querySelectorAll('*'), urlsOf);
      const rules = pictures.size ? [] : Array.from(document.styleSheets, rulesOf).flat();
      await Promise.all([...used, ...rules.map(urlsIn)].flat().map(load));
      await document.fonts.ready;
    },
  };
})();
