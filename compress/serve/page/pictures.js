// ---- a picture as the network was trained to see it: the same bytes as Pillow makes of it --------------------------------------------
// Pixels are bytes, row by row, the channels of a pixel beside each other.
const KERNELS = { // half of the width, and the weight at a distance
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => { x = Math.abs(x); return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -.5 : 0; }],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
function sinc(x) { return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI); }

function even(value) { // as Python rounds: halves to the even neighbour
  const low = Math.floor(value), over = value - low;
  return over < .5 || over === .5 && low % 2 === 0 ? low : low + 1;
}

function flat(rgba, channels) { // opaque pixels as grey by the luma of ITU-R 601, or without their alpha
  const pixels = new Uint8Array(rgba.length / 4 * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    if (channels === 1) pixels[to++] = (19595 * rgba[from] + 38470 * rgba[from + 1] + 7471 * rgba[from + 2] + 32768) >> 16;
    else for (let part = 0; part < 3; part++) pixels[to++] = rgba[from + part];
  }
  return pixels;
}

// From `size` pixels to `wanted`: for each of these where its weights begin, and the weights in units of 2^-22.
function weights(size, wanted, [half, weight]) {
  const scale = size / wanted, wide = Math.max(1, scale), found = [];
  for (let place = 0; place < wanted; place++) {
    const middle = (place + .5) * scale, first = Math.max(0, Math.trunc(middle - half * wide + .5)), end = Math.min(size, Math.trunc(middle + half * wide + .5));
    const own = Array.from({ length: end - first }, (_, at) => weight((at + first - middle + .5) * (1 / wide))), sum = own.reduce((a, b) => a + b, 0);
    found.push({ first, own: own.map((one) => { const whole = (sum ? one / sum : one) * 4194304; return Math.trunc(whole < 0 ? whole - .5 : whole + .5); }) });
  }
  return found;
}

// One axis: lines of `from.size` pixels become lines of `to.size`; `step`: bytes from a pixel to the next, `line`: from a line to the next.
function along(pixels, count, channels, from, to, kernel) {
  const out = new Uint8Array(count * to.size * channels);
  for (const [place, { first, own }] of weights(from.size, to.size, kernel).entries())
    for (let line = 0; line < count; line++) for (let part = 0; part < channels; part++) {
      let sum = 2097152;
      for (let at = 0; at < own.length; at++) sum += own[at] * pixels[line * from.line + (first + at) * from.step + part];
      out[line * to.line + place * to.step + part] = Math.min(255, Math.max(0, sum >> 22));
    }
  return out;
}

function scaled(pixels, [height, width, channels], [tall, wide], interpolation) {
  if (interpolation === "nearest") return nearest(pixels, [height, width, channels], [tall, wide]);
  const kernel = KERNELS[interpolation], row = wide * channels;
  const across = (size) => ({ size, step: channels, line: size * channels }), down = (size) => ({ size, step: row, line: channels });
  if (wide !== width) pixels = along(pixels, height, channels, across(width), across(wide), kernel);
  if (tall !== height) pixels = along(pixels, wide, channels, down(height), down(tall), kernel);
  return pixels;
}

function nearest(pixels, [height, width, channels], [tall, wide]) {
  const places = (size, wanted) => {
    const step = size / wanted, found = [];
    for (let place = 0, at = step * .5; place < wanted; place++, at += step) found.push(Math.min(size - 1, Math.trunc(at)));
    return found;
  };
  const out = new Uint8Array(tall * wide * channels), columns = places(width, wide);
  for (const [row, from] of places(height, tall).entries()) for (const [column, at] of columns.entries())
    for (let part = 0; part < channels; part++) out[(row * wide + column) * channels + part] = pixels[(from * width + at) * channels + part];
  return out;
}

// What of `pixels` is seen through a window of [tall, wide] whose corner lies at top, left; black where there are none.
function through(pixels, [height, width, channels], [tall, wide], top, left) {
  const out = new Uint8Array(tall * wide * channels);
  for (let row = Math.max(0, -top); row < Math.min(tall, height - top); row++) {
    const from = Math.max(0, left), to = Math.min(width, left + wide), begin = ((row + top) * width + from) * channels;
    out.set(pixels.subarray(begin, begin + (to - from) * channels), (row * wide + from - left) * channels);
  }
  return out;
}

// `resize`: the way (stretch, crop or pad), crop and interpolation of the training.
function fitted(pixels, [height, width, channels], [tall, wide], { way, crop, interpolation }) {
  if (way === "stretch") return scaled(pixels, [height, width, channels], [tall, wide], interpolation);
  let size = [tall, wide];
  if (way === "pad") {
    const ratio = width / height, wanted = wide / tall;
    if (ratio > wanted) size = [even(height / width * wide), wide];
    else if (ratio < wanted) size = [tall, even(width / height * tall)];
    size = size.map((one) => Math.max(1, one));
    const place = size[1] !== wide ? [0, -even((wide - size[1]) * .5)] : [-even((tall - size[0]) * .5), 0];
    return through(scaled(pixels, [height, width, channels], size, interpolation), [...size, channels], [tall, wide], ...place);
  }
  const least = [Math.floor(tall / crop), Math.floor(wide / crop)], own = [height, width];
  const side = least[1] / width >= least[0] / height ? 1 : 0; // the one that just fits; the other is longer
  size = own.map((one) => Math.floor(least[side] * one / own[side]));
  const corner = [even((size[0] - tall) / 2), even((size[1] - wide) / 2)];
  return through(scaled(pixels, [height, width, channels], size, interpolation), [...size, channels], [tall, wide], ...corner);
}

// ---- what of an image speaks for a class: squares that are covered to see what it costs -----------------------------------------------
function background(pixels, [height, width, channels]) { // the median colour of the border
  return Array.from({ length: channels }, (_, part) => {
    const at = (row, column) => pixels[(row * width + column) * channels + part], border = [];
    for (let column = 0; column < width; column++) border.push(at(0, column), at(height - 1, column));
    for (let row = 0; row < height; row++) border.push(at(row, 0), at(row, width - 1));
    border.sort((a, b) => a - b);
    return Math.trunc((border[border.length / 2 - 1] + border[border.length / 2]) / 2);
  });
}

function squares([height, width]) { // half of a square from one to the next; they begin outside, so that a corner is covered as often
  const patch = Math.max(1, even(Math.min(height, width) / 7)), stride = Math.max(1, Math.floor((patch + 1) / 2)), found = [];
  for (let top = stride - patch; top < height; top += stride) for (let left = stride - patch; left < width; left += stride)
    found.push({ top: Math.max(0, top), bottom: Math.min(height, top + patch), left: Math.max(0, left), right: Math.min(width, left + patch) });
  return found;
}

function inside({ top, bottom, left, right }, width, each) {
  for (let row = top; row < bottom; row++) for (let column = left; column < right; column++) each(row * width + column);
}
