// What is wrong with the layout of a page at some widths. `measure` gives a promise of texts; none of them means nothing is.
function measure(html, widths) {
  return Promise.all(widths.map(function (width) {
    return new Promise(function (done) {
      var frame = document.createElement("iframe");
      frame.style.cssText = "border:0;height:900px;width:" + width + "px";
      frame.onload = function () {
        var page = frame.contentDocument;
        page.querySelectorAll("details").forEach(function (d) { d.open = true; });
        done(faults(page).map(function (fault) { return width + " px: " + fault; }));
      };
      frame.srcdoc = html;
      document.body.appendChild(frame);
    });
  })).then(function (all) { return [].concat.apply([], all); });
}

function faults(page) {
  var root = page.documentElement, width = root.clientWidth, found = [];
  if (root.scrollWidth > width) found.push("the page scrolls sideways, it is " + root.scrollWidth + " px wide");
  page.body.querySelectorAll("*").forEach(function (e) {
    var box = e.getBoundingClientRect();
    if (box.width > 0 && (box.right > width + 1 || box.left < -1) && !within(e, page)) {
      found.push("outside of the page: " + name(e));
    }
  });
  page.querySelectorAll("svg.plot, svg.forest-axis").forEach(function (svg) {
    if (svg.getBoundingClientRect().width < 100) found.push("too narrow: " + name(svg));
    var end = -Infinity;
    svg.querySelectorAll("text.tick.x").forEach(function (tick) {
      var box = tick.getBoundingClientRect();
      if (box.left < end) found.push("labels of an axis touch: " + tick.textContent);
      end = box.right;
    });
  });
  page.querySelectorAll("th, td, h1, h2, h3, dd, li").forEach(function (e) {
    var box = e.getBoundingClientRect();
    if (box.width > 0 && box.height > 8 * Math.max(box.width, 30)) found.push("a column of letters: " + name(e));
  });
  return found;
}

// Whether an element lies in a part of the page that scrolls or hides what is too wide, or is a link that shows only on focus.
function within(e, page) {
  if (e.classList.contains("skip")) return true;
  for (var up = e; up && up !== page.body; up = up.parentElement) {
    if (page.defaultView.getComputedStyle(up).overflowX !== "visible") return true;
  }
  return false;
}

function name(e) {
  return "<" + e.tagName.toLowerCase() + " class=\"" + (e.getAttribute("class") || "") + "\"> " + (e.textContent || "").trim().slice(0, 40);
}
