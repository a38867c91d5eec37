// Texts of a page that are too faint: those whose contrast, by the colours as they are drawn, is below `least` : 1.
// tests/test_app.py runs it in the browser. A cell's bar of attention may or may not lie behind its text: both count.
(least) => {
  const sheet = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
  const pen = sheet.getContext('2d', {willReadFrequently: true});
  const parse = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below, alpha = top[3]) => [0, 1, 2].map(i => top[i] * alpha + below[i] * (1 - alpha)).concat(1);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const ground = (element) => {
    const own = parse(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own : over(own, element.parentElement ? ground(element.parentElement) : [255, 255, 255, 1]);
  };
  const opacity = (element) => element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1;

  const faint = [], seen = [];
  const judge = (element, colour, text) => {
    const box = element.getBoundingClientRect();
    if (!text.trim() || box.width < 2 || box.height < 2 || !element.checkVisibility({visibilityProperty: true})) return;
    const shown = opacity(element);
    if (!shown) return;
    const grounds = [ground(element)];
    if (+element.style.getPropertyValue('--bar'))
      grounds.push(over(parse(getComputedStyle(element).boxShadow.match(/[a-z]+\([^)]*\)/)[0]), grounds[0]));
    for (const below of grounds) {
      const ink = parse(colour);
      const ratio = contrast(over(ink, below, ink[3] * shown), below);
      seen.push(text);
      if (ratio < least)
        faint.push(`${text.trim().slice(0, 40)}: ${ratio.toFixed(2)} (${element.tagName} ${element.className})`);
    }
  };

  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!['SCRIPT', 'STYLE', 'TEXTAREA'].includes(element.tagName))
      judge(element, getComputedStyle(element).color, walker.currentNode.data);
  }
  for (const field of document.querySelectorAll('textarea, input[type=number], input[type=text]')) {
    judge(field, getComputedStyle(field).color, field.value);
    judge(field, getComputedStyle(field, '::placeholder').color, field.placeholder);
  }
  return {faint, count: seen.length};
}
