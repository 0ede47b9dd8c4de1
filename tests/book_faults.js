// What is wrong with the open page at this width and in these colours: a list of sentences, empty if nothing is.
() => {
  const faults = [];
  const width = document.documentElement.clientWidth;
  const article = document.querySelector("article");
  const text = (element) => element.textContent.trim().slice(0, 60);

  // Whether a box that scrolls, as a wide table has, keeps the element inside the page.
  const isBoxed = (element) => {
    for (let box = element.parentElement; box && box !== article; box = box.parentElement)
      if (getComputedStyle(box).overflowX !== "visible") return box.getBoundingClientRect().right <= width + 1;
    return false;
  };
  if (document.documentElement.scrollWidth > width) faults.push("the page scrolls sideways");
  for (const element of article.querySelectorAll("*"))
    if (element.getBoundingClientRect().right > width + 1 && !isBoxed(element))
      faults.push(`<${element.localName}> is wider than the page: ${text(element)}`);
  for (const block of document.querySelectorAll("pre"))
    if (block.scrollWidth > block.clientWidth + 1) faults.push(`code scrolls sideways: ${text(block)}`);

  for (const picture of document.images)
    if (!picture.complete || !picture.naturalWidth) faults.push(`a broken picture: ${picture.src}`);

  for (const formula of document.querySelectorAll("math"))
    if (!formula.getBoundingClientRect().width || formula.querySelector("merror"))
      faults.push(`a formula that is not shown: ${text(formula)}`);
  for (const element of article.querySelectorAll("p, li, td"))
    if ([...element.childNodes].some((node) => node.nodeType === 3 && /\$\$|\\[a-z]+\{|\\\(/.test(node.data)))
      faults.push(`a formula that is not rendered: ${text(element)}`);

  // The contrast ratio of WCAG 2; 3 is its minimum for large text, and what a code's colours reach.
  const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [red, green, blue] = channels(colour)
      .map((value) => value / 255)
      .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const background = (element) => {
    for (let box = element; box; box = box.parentElement) {
      const colour = getComputedStyle(box).backgroundColor;
      const [, , , alpha = 1] = channels(colour);
      if (alpha > 0.5) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const seen = new Set();
  for (const element of article.querySelectorAll(":not(.headerlink)")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const colours = [getComputedStyle(element).color, background(element)];
    if (seen.has(colours.join())) continue;
    seen.add(colours.join());
    const [dark, light] = colours.map(luminance).sort((one, other) => one - other);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 3) faults.push(`${colours[0]} on ${colours[1]} is hard to read (${ratio.toFixed(1)}): ${text(element)}`);
  }
  return faults;
}
