"use strict";
// Say that a table is wider than its place, and fade its edge until it is scrolled to the end.
for (const place of document.querySelectorAll(".scroll")) {
  const hint = () => {
    place.previousElementSibling.hidden = place.scrollWidth < place.clientWidth + 3;
    place.classList.toggle("more", place.scrollLeft + place.clientWidth < place.scrollWidth - 2);
  };
  new ResizeObserver(hint).observe(place);
  place.addEventListener("scroll", hint, { passive: true });
}
