// Draws the figures of executed notebooks with the site's own copy of plotly, when there are any.
const drawn = document.querySelectorAll(".plotly-figure > script");
if (drawn.length) {
  const library = document.createElement("script");
  library.src = "plotly.min.js";
  library.onload = () => drawn.forEach((content) => {
    const { data, layout } = JSON.parse(content.textContent);
    const place = document.createElement("div");
    content.parentElement.append(place);
    Plotly.newPlot(place, data, layout, { responsive: true, displaylogo: false });
  });
  document.head.append(library);
}
