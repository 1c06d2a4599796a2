"""A bar chart as SVG, small enough to write by hand: groups of bars, one colour per series."""

from collections.abc import Mapping, Sequence
from pathlib import Path

COLOURS = ("#9aa4b2", "#e0a458", "#5b8def", "#2f9e6e")
WIDTH, HEIGHT, TOP, LEFT = 640, 300, 46, 16


def bar_chart(
    path: Path,
    title: str,
    unit: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],  # name: one value per group
) -> None:
    largest = max(max(values) for values in series.values())
    room = (WIDTH - 2 * LEFT) / len(groups)
    width = room * 0.8 / len(series)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11" fill="#444">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="13" font-weight="bold">{title}</text>',
    ]
    for number, name in enumerate(series):
        x = LEFT + number * (WIDTH - 2 * LEFT) / len(series)
        parts.append(f'<rect x="{x:.0f}" y="26" width="10" height="10" fill="{COLOURS[number]}"/>')
        parts.append(f'<text x="{x + 14:.0f}" y="35">{name}</text>')
    floor = HEIGHT - 24
    for group, name in enumerate(groups):
        left = LEFT + group * room + room * 0.1
        middle = left + room * 0.4
        parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{name}</text>')
        for number, values in enumerate(series.values()):
            value = values[group]
            tall = value / largest * (floor - TOP - 14)
            x = left + number * width
            parts.append(
                f'<rect x="{x:.1f}" y="{floor - tall:.1f}" width="{width * 0.9:.1f}" '
                f'height="{tall:.1f}" fill="{COLOURS[number]}"/>'
            )
            parts.append(
                f'<text x="{x + width * 0.45:.1f}" y="{floor - tall - 4:.1f}" '
                f'text-anchor="middle">{value:.3g}{unit}</text>'
            )
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")
