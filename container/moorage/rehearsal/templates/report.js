"use strict";
// What a chart shows at the pointer. Without this script only that is missing.
for (const plot of document.querySelectorAll(".plot")) {
  const svg = plot.querySelector("svg"), readout = plot.querySelector(".readout");
  const [x0, x1] = svg.dataset.x.split(" ").map(Number), [y0, y1] = svg.dataset.y.split(" ").map(Number);
  const points = [...svg.querySelectorAll(".line")]
    .flatMap((line) => line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number)));
  const hair = document.createElementNS("http://www.w3.org/2000/svg", "line");
  hair.setAttribute("class", "hair");
  hair.setAttribute("y1", 0);
  hair.setAttribute("y2", 10000);
  const show = (event) => {
    const box = svg.getBoundingClientRect(), at = 10000 * (event.clientX - box.left) / box.width;
    let nearest = points[0];
    for (const point of points) if (Math.abs(point[0] - at) < Math.abs(nearest[0] - at)) nearest = point;
    const x = x0 + (x1 - x0) * nearest[0] / 10000, y = y1 - (y1 - y0) * nearest[1] / 10000;
    const where = svg.dataset.unit === "step" ? `step ${Math.round(x)}` : `${x.toFixed(1)} s`;
    readout.textContent = `${where}: ${Number(y.toPrecision(4))}`;
    readout.hidden = false;
    readout.style.left = `${Math.min(88, Math.max(12, nearest[0] / 100))}%`;
    hair.setAttribute("x1", nearest[0]);
    hair.setAttribute("x2", nearest[0]);
    svg.append(hair);
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", () => { readout.hidden = true; hair.remove(); });
}
