// A link, a form or a script that leaves the page would end the episode without a result.
navigation.addEventListener('navigate', (event) => {
  if (event.cancelable && !event.hashChange) event.preventDefault();
});
