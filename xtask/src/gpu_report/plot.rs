//! GPU utilisation and memory over time as SVG.

use std::fmt::Write as _;

use serde_json::Value;

use super::{STEPS, list, text};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 34.0;
/// Bands narrower than this have no number.
const NARROW: f64 = 12.0;
const MIB_OF_GIB: f64 = 1024.0;

/// Plots of the busy share in percent and of the memory in GiB, from `gpu-use.json`; `None` with fewer than two
/// samples.
pub(super) fn of(used: &Value) -> Option<[String; 2]> {
    let column = |name: &str| list(&used["columns"]).iter().position(|c| c.as_str() == Some(name));
    let (seconds, share, memory) = (column("seconds")?, column("gpu_percent")?, column("memory_mib")?);
    let points = |which: usize, scale: f64| -> Vec<(f64, f64)> {
        list(&used["samples"]).iter().filter_map(|s| Some((s[seconds].as_f64()?, s[which].as_f64()? / scale))).collect()
    };
    let (share, memory) = (points(share, 1.0), points(memory, MIB_OF_GIB));
    if share.len() < 2 {
        return None;
    }
    let top = memory.iter().map(|p| p.1).fold(1.0, f64::max);
    // The next multiple of 4 GiB.
    let top = (top / 4.0).ceil() * 4.0;
    Some([chart(used, &share, 100.0, "GPU busy, %", "#2563a8"), chart(used, &memory, top, "memory, GiB", "#a8542b")])
}

/// Steps that ran at the same time: their numbers, and start and end in seconds.
struct Band {
    steps: Vec<usize>,
    from: f64,
    to: f64,
}

impl Band {
    fn label(&self) -> String {
        match (self.steps.iter().min(), self.steps.iter().max()) {
            (Some(first), Some(last)) if first != last => format!("{first}–{last}"),
            (Some(only), _) => only.to_string(),
            _ => String::new(),
        }
    }
}

fn bands(used: &Value) -> Vec<Band> {
    let mut found: Vec<Band> = Vec::new();
    for step in list(&used["steps"]) {
        let number = STEPS.iter().position(|(name, _)| *name == text(step, "name"));
        let (Some(number), Some(from), Some(to)) = (number, step["start"].as_f64(), step["end"].as_f64()) else {
            continue;
        };
        match found.last_mut() {
            Some(band) if from < band.to => {
                band.steps.push(number + 1);
                band.to = band.to.max(to);
            }
            _ => found.push(Band { steps: vec![number + 1], from, to }),
        }
    }
    found
}

fn chart(used: &Value, points: &[(f64, f64)], top: f64, title: &str, colour: &str) -> String {
    let end = points.iter().map(|p| p.0).fold(1.0, f64::max);
    let base = HEIGHT - BOTTOM;
    let x = |seconds: f64| LEFT + seconds.clamp(0.0, end) / end * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| base - value.clamp(0.0, top) / top * (base - TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" font-family=\"sans-serif\" font-size=\"11\" fill=\"#333\">\n\
         <title>{title} over time</title>\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    for (i, band) in bands(used).into_iter().enumerate() {
        let (from, to) = (x(band.from), x(band.to));
        let fill = if i % 2 == 0 { "#f0f2f5" } else { "#fafafa" };
        let _ = writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\"/>",
            to - from,
            base - TOP
        );
        if to - from >= NARROW {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#777\">{}</text>",
                (from + to) / 2.0,
                TOP - 5.0,
                band.label()
            );
        }
    }
    for part in 0..=4 {
        let value = top * f64::from(part) / 4.0;
        let (at, label) = (y(value), value.round());
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
    }
    let mut line = String::new();
    for (seconds, value) in points {
        let _ = write!(line, "{:.1},{:.1} ", x(*seconds), y(*value));
    }
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.2\"/>",
        line.trim_end()
    );
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{:.1}\">0 s</text>", base + 16.0);
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{end:.0} s</text>",
        WIDTH - RIGHT,
        base + 16.0
    );
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{colour}\">{title}</text>",
        WIDTH / 2.0,
        base + 28.0
    );
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plots_have_bands_and_lines() {
        let used = json!({
            "columns": ["seconds", "gpu_percent", "memory_mib", "watts", "sm_mhz"],
            "steps": [{"name": "environment", "start": 0.0, "end": 5.0}, {"name": "parity", "start": 5.0, "end": 9.0}, {"name": "first loss", "start": 5.1, "end": 10.0}],
            "samples": [[0.0, 0.0, 500.0, null, 345.0], [5.0, 98.0, 9000.0, 600.0, 1980.0], [10.0, 50.0, null, null, null]],
        });
        let [share, memory] = of(&used).unwrap();
        assert!(share.contains("GPU busy") && memory.contains("memory, GiB"));
        assert_eq!(share.matches("<rect").count(), 3);
        // Parity is the fifth step and overlaps the sixth. 9000 MiB round up to 12 GiB.
        assert!(share.contains(">5–6</text>") && memory.contains(">12</text>"), "{memory}");
        assert!(share.contains("52.0,196.0 470.0,") && memory.matches(',').count() < share.matches(',').count());
        assert!(of(&json!({"columns": used["columns"], "samples": []})).is_none());
    }
}
