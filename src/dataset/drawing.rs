//! Rendering of SVG drawings.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use d2o_refs::decode;
use flate2::read::GzDecoder;
use ndarray::Array3;
use resvg::{tiny_skia, usvg};

use super::source::GZIP;

/// Largest drawing accepted, bytes when unpacked.
const MAX_TEXT: u64 = 32 << 20;
/// Largest number of tags, and of attributes of one element, which the parser compares with each other.
const MAX_ELEMENTS: usize = 1 << 19;
const MAX_ATTRIBUTES: usize = 1 << 11;
/// Largest number of entities, and of bytes to which all their uses expand.
const MAX_ENTITIES: usize = 1 << 10;
const MAX_EXPANDED: usize = 4 << 20;
/// Largest number of pixels of all bitmaps in a drawing together, of a pattern tile, and of a filter layer.
const MAX_PIXELS: usize = 1 << 25;
/// Longest time to render one drawing.
const DEADLINE: Duration = Duration::from_secs(8);
/// Stack of the rendering thread, bytes: elements nest, up to the limit of usvg.
const STACK: usize = 64 << 20;

/// Renders an SVG, fitted and centred in `[height, width]` pixels over the colour `background`, as u8 `[height, width,
/// 3]`. Other files that it refers to are not read.
///
/// # Errors
/// If `svg` cannot be read, or needs too much memory or time.
pub(super) fn render(svg: Vec<u8>, size: [usize; 2], background: [u8; 3]) -> anyhow::Result<Array3<u8>> {
    let (give, given) = channel();
    let draw = move || {
        // After the deadline the receiver is gone.
        let _ = give.send(draw(&svg, size, background));
    };
    std::thread::Builder::new().stack_size(STACK).spawn(draw)?;
    match given.recv_timeout(DEADLINE) {
        Ok(drawn) => drawn,
        Err(RecvTimeoutError::Timeout) => {
            bail!("expected a drawing that renders within {DEADLINE:?}, found a slower one")
        }
        Err(RecvTimeoutError::Disconnected) => bail!("the renderer failed"),
    }
}

fn draw(svg: &[u8], [height, width]: [usize; 2], background: [u8; 3]) -> anyhow::Result<Array3<u8>> {
    let tree = parse(svg)?;
    let pixmap = tiny_skia::Pixmap::new(u32::try_from(width)?, u32::try_from(height)?);
    let mut pixmap = pixmap.context("expected a resolution above 0")?;
    let [r, g, b] = background;
    pixmap.fill(tiny_skia::Color::from_rgba8(r, g, b, 255));
    #[allow(clippy::cast_precision_loss, reason = "a small resolution")]
    let target = [width as f32, height as f32];
    let size = [tree.size().width(), tree.size().height()];
    let scale = (target[0] / size[0]).min(target[1] / size[1]);
    ensure_layers(tree.root(), scale)?;
    let shift = |axis: usize| (target[axis] - size[axis] * scale) / 2.0;
    let transform = tiny_skia::Transform::from_scale(scale, scale).post_translate(shift(0), shift(1));
    resvg::render(&tree, transform, &mut pixmap.as_mut());
    let rgb = pixmap.pixels().iter().flat_map(|p| [p.red(), p.green(), p.blue()]).collect();
    Ok(Array3::from_shape_vec((height, width, 3), rgb)?)
}

/// Parses a drawing and the drawings embedded in it. Each is checked before it is parsed.
fn parse(svg: &[u8]) -> anyhow::Result<usvg::Tree> {
    let (pixels, refused) = (AtomicUsize::new(0), AtomicBool::new(false));
    let options = usvg::Options {
        image_href_resolver: usvg::ImageHrefResolver {
            resolve_data: Box::new(|mime, data, options| {
                let found = match decode::dims(Path::new(""), "", &data) {
                    Ok(Some((height, width))) => {
                        let all = pixels.fetch_add(height.saturating_mul(width), Ordering::Relaxed);
                        (all <= MAX_PIXELS && height.saturating_mul(width) <= MAX_PIXELS - all).then_some(data)
                    }
                    _ if data.starts_with(&GZIP) || data.trim_ascii_start().starts_with(b"<") => {
                        plain(&data).map(Arc::new).ok()
                    }
                    _ => None,
                };
                refused.fetch_or(found.is_none(), Ordering::Relaxed);
                usvg::ImageHrefResolver::default_data_resolver()(mime, found?, options)
            }),
            resolve_string: Box::new(|_, _| None),
        },
        ..usvg::Options::default()
    };
    let tree = usvg::Tree::from_data(&plain(svg)?, &options)?;
    ensure!(
        !refused.load(Ordering::Relaxed),
        "expected embedded images of at most {MAX_PIXELS} pixels in total, found larger or unreadable images"
    );
    Ok(tree)
}

/// The text of a drawing, unpacked if it is gzipped. Checks that the memory to parse it is limited.
fn plain(svg: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    if svg.starts_with(&GZIP) {
        GzDecoder::new(svg).take(MAX_TEXT + 1).read_to_end(&mut text).context("not a readable gzip file")?;
    } else {
        text.extend_from_slice(&svg[..svg.len().min(usize::try_from(MAX_TEXT + 1)?)]);
    }
    ensure!(text.len() as u64 <= MAX_TEXT, "expected a drawing of at most {MAX_TEXT} bytes, found a larger one");
    let (mut elements, mut attributes, mut quote, mut inside) = (0, 0, None, false);
    for byte in &text {
        match (byte, quote) {
            (b, Some(open)) if *b == open => quote = None,
            (_, Some(_)) => {}
            (b'<', None) => {
                (elements, attributes, inside) = (elements + 1, 0, true);
            }
            (b'>', None) => inside = false,
            (b @ (b'"' | b'\''), None) if inside => quote = Some(*b),
            (b'=', None) if inside => {
                attributes += 1;
                let expected = "attributes of an element";
                ensure!(attributes <= MAX_ATTRIBUTES, "expected at most {MAX_ATTRIBUTES} {expected}, found more");
            }
            _ => {}
        }
    }
    ensure!(elements <= MAX_ELEMENTS, "expected at most {MAX_ELEMENTS} tags, found {elements}");
    ensure_entities(&text)?;
    Ok(text)
}

/// Checks that the uses of entities expand to little text.
fn ensure_entities(text: &[u8]) -> anyhow::Result<()> {
    const DECLARED: &[u8] = b"<!ENTITY";
    // Number of bytes to which each entity expands. An entity may use earlier ones.
    let mut sizes: HashMap<&[u8], usize> = HashMap::new();
    let size_of = |value: &[u8], sizes: &HashMap<&[u8], usize>| {
        let uses = value.split(|b| *b == b'&').skip(1);
        let names = uses.filter_map(|rest| Some(&rest[..rest.iter().take(64).position(|b| *b == b';')?]));
        names.filter_map(|name| sizes.get(name)).fold(0_usize, |sum, n| sum.saturating_add(*n))
    };
    let mut rest = text;
    while let Some(at) = rest.windows(DECLARED.len()).position(|w| w == DECLARED) {
        rest = &rest[at + DECLARED.len()..];
        let declaration = rest.trim_ascii_start();
        let name = declaration.split(u8::is_ascii_whitespace).next().unwrap_or(&[]);
        let value = declaration.iter().position(|b| matches!(b, b'"' | b'\'')).and_then(|open| {
            let value = &declaration[open + 1..];
            Some(&value[..value.iter().position(|b| *b == declaration[open])?])
        });
        let value = value.unwrap_or(&[]);
        let size = value.len().saturating_add(size_of(value, &sizes));
        // XML uses the first declaration of a name; the largest one is a safe bound.
        let known = sizes.entry(name).or_insert(0);
        *known = size.max(*known);
        ensure!(sizes.len() <= MAX_ENTITIES, "expected at most {MAX_ENTITIES} entities, found more");
    }
    let found = if sizes.is_empty() { 0 } else { size_of(text, &sizes) };
    ensure!(found <= MAX_EXPANDED, "expected entities that expand to at most {MAX_EXPANDED} bytes, found {found}");
    Ok(())
}

/// Checks that the pattern tiles and filter layers in `group`, drawn at `scale`, are not too large.
fn ensure_layers(group: &usvg::Group, scale: f32) -> anyhow::Result<()> {
    let ensure_size = |what: &str, width: f32, height: f32| {
        #[allow(clippy::cast_precision_loss, reason = "a power of two")]
        let most = MAX_PIXELS as f32;
        // `f32::max` replaces NaN by 1.
        let fits = width.max(1.0) * height.max(1.0) <= most;
        ensure!(fits, "expected {what} of at most {MAX_PIXELS} pixels, found {width:.0}×{height:.0}");
        Ok(())
    };
    for node in group.children() {
        match node {
            usvg::Node::Group(group) => {
                if !group.filters().is_empty() {
                    let layer = group.abs_layer_bounding_box();
                    ensure_size("a filter's layer", layer.width() * scale, layer.height() * scale)?;
                }
                ensure_layers(group, scale)?;
            }
            usvg::Node::Path(path) => {
                let paints = [path.fill().map(usvg::Fill::paint), path.stroke().map(usvg::Stroke::paint)];
                for paint in paints.into_iter().flatten() {
                    let usvg::Paint::Pattern(pattern) = paint else { continue };
                    let (x, y) = path.abs_transform().pre_concat(pattern.transform()).get_scale();
                    let (x, y) = (x * scale, y * scale);
                    let tile = pattern.rect();
                    ensure_size("a pattern's tile", tile.width() * x, tile.height() * y)?;
                    ensure_layers(pattern.root(), x.max(y))?;
                }
                continue;
            }
            _ => {}
        }
        let mut found = Ok(());
        node.subroots(|root| {
            if found.is_ok() {
                found = ensure_layers(root, scale);
            }
        });
        found?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(body: &str, before: &str) -> String {
        let head =
            "<svg xmlns='http://www.w3.org/2000/svg' xmlns:xlink='http://www.w3.org/1999/xlink' viewBox='0 0 100 100'>";
        let svg = format!("{before}{head}{body}</svg>").into_bytes();
        match render(svg, [8, 8], [255; 3]) {
            Ok(drawn) => format!("{:?}", drawn[[4, 4, 0]]),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_takes_much_memory_or_time_is_refused_with_its_limit() {
        let rect = "<rect width='100' height='100' fill='black'/>";
        assert_eq!(found(rect, ""), "0");
        let many = format!("<rect {}/>", (0..3000).map(|i| format!("a{i}='1' ")).collect::<String>());
        let entity = format!("<!DOCTYPE svg [<!ENTITY b '{}'>]>", "x".repeat(10_000));
        let nested = "<!DOCTYPE svg [<!ENTITY a '0123456789'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]>";
        let pattern = "<pattern id='p' width='1e6' height='1e6' patternUnits='userSpaceOnUse'><rect width='1e6' height='1e6'/></pattern>\\
                       <rect width='100' height='100' fill='url(#p)'/>";
        let turbulence = "<filter id='f'><feTurbulence baseFrequency='0.5' numOctaves='1000000000'/></filter>\\
                          <rect width='100' height='100' filter='url(#f)'/>";
        for (body, before, text) in [
            (many.as_str(), "", "at most 2048 attributes"),
            (&"<g/>".repeat(600_000), "", "at most 524288 tags"),
            (&format!("<text>{}</text>", "&b;".repeat(1000)), &entity, "at most 4194304 bytes, found 10000000"),
            (&format!("<text>{}</text>", "&b;".repeat(60_000)), nested, "found 6240080"),
            (pattern, "", "a pattern's tile of at most"),
            (turbulence, "", "renders within 8s"),
        ] {
            let found = found(body, before);
            assert!(found.contains(text), "{text}: {found}");
        }
        assert_eq!(found(&format!("{rect}<text>&b;</text>"), &entity), "0");
    }

    #[test]
    fn images_within_a_drawing_are_looked_through_first() {
        // Width, height and type of a PNG, without its pixels.
        let header = "iVBORw0KGgoAAAANSUhEUgAAdTAAAHUwCAAAAAD";
        let image = format!("<image width='100' height='100' xlink:href='data:image/png;base64,{header}'/>");
        assert!(found(&image, "").contains("at most 33554432 pixels"), "{}", found(&image, ""));
    }

    #[test]
    fn other_files_are_not_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("black.svg");
        let rect = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'><rect width='9' height='9'/></svg>";
        fs_err::write(&path, rect).unwrap();
        let image = format!("<image width='100' height='100' xlink:href='{}'/>", path.display());
        assert_eq!(found(&image, ""), "255");
    }
}
