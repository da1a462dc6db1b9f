//! JPEG 2000 by OpenJPEG, the decoder of Pillow: `.jp2` files and bare codestreams of 1 to 4 components of 8 bits and one size.
//!
//! OpenJPEG allocates what the headers ask for. Therefore the headers are read first, in the main header and in every
//! tile part, and the memory that they lead to is bounded before OpenJPEG is called. Data that this reader does not
//! follow in the same way as OpenJPEG are rejected: unknown markers, bytes between tile parts, palettes.

use d2o_files::kind::{CODESTREAM, JPEG_2000};
use jpeg2k::{ColorSpace, DecodeParameters, Image};

use super::Fault;
use super::jpeg::be16;
use super::memory::{self, Reservation};
use super::pixels::{self, Pixels};

/// Most boxes before the codestream.
const MAX_BOXES: usize = 1 << 12;
/// Most memory that one image can take while it is decoded, bytes. 25 megapixels of RGB count as 1 GB, and take three
/// quarters of it.
const MAX_MEMORY: u64 = 1 << 30;
/// Most bytes of the packet table that OpenJPEG keeps for a tile.
const MAX_PACKETS: u64 = 64 << 20;

/// Bytes that OpenJPEG takes for a tile, for a component of a tile, for a precinct of a band and for a code block,
/// rounded up. Measured for code blocks of 4×4 samples: 0.4 kB each.
const TILE: u64 = 6144;
const TILE_COMPONENT: u64 = 1280;
const PRECINCT: u64 = 512;
const BLOCK: u64 = 1024;

const SOT: u8 = 0x90;
const SOD: u8 = 0x93;
const EOC: u8 = 0xd9;
const COD: u8 = 0x52;
const COC: u8 = 0x53;
const TLM: u8 = 0x55;
const COM: u8 = 0x64;
/// Other accepted markers: CAP, PLM, PLT, CPF, QCD, QCC, RGN, POC, PPM, PPT, CRG.
const KNOWN: [u8; 11] = [0x50, 0x57, 0x58, 0x59, 0x5c, 0x5d, 0x5e, 0x5f, 0x60, 0x61, 0x63];

/// Fields of the SIZ marker.
#[derive(Debug, Clone, Copy)]
struct Header {
    /// Offset of the marker after SIZ.
    end: usize,
    height: usize,
    width: usize,
    components: usize,
    /// Height and width of a tile, and number of tiles.
    tile: (u64, u64),
    tiles: u64,
}

fn be32(bytes: &[u8], at: usize) -> Option<usize> {
    Some(be16(bytes, at)? << 16 | be16(bytes, at + 2)?)
}

/// Offset of the codestream, and the height and width that the file around it states.
type Start = (usize, Option<(usize, usize)>);

/// Finds the codestream and the size that the header of the file states; `None` if `bytes` end before the codestream.
fn codestream(bytes: &[u8]) -> Result<Option<Start>, Fault> {
    if bytes.starts_with(&CODESTREAM) {
        return Ok(Some((0, None)));
    }
    let (mut at, mut size) = (JPEG_2000.len(), None);
    for _ in 0..MAX_BOXES {
        let (Some(mut length), Some(kind)) = (be32(bytes, at), bytes.get(at + 4..at + 8)) else { return Ok(None) };
        let mut head = 8;
        if length == 1 {
            let (Some(high), Some(low)) = (be32(bytes, at + 8), be32(bytes, at + 12)) else { return Ok(None) };
            (length, head) = (high << 32 | low, 16);
        }
        if kind == b"jp2c" {
            return Ok(Some((at + head, size)));
        }
        let end = at.checked_add(length).filter(|_| length >= head);
        let Some(end) = end else {
            return Err(Fault::expected("boxes up to a codestream", format!("a box of {length} bytes")));
        };
        if kind == b"jp2h" {
            let Some(inner) = bytes.get(at + head..end) else { return Ok(None) };
            // OpenJPEG creates a channel for each column of a palette.
            if inner.windows(4).any(|w| w == b"pclr" || w == b"cmap") {
                return Err(Fault::expected("a JPEG 2000 image without a palette", "one with a palette"));
            }
            if inner.get(4..8) == Some(b"ihdr") {
                size = be32(inner, 8).zip(be32(inner, 12));
            }
        }
        at = end;
    }
    Err(Fault::expected(format!("a codestream after at most {MAX_BOXES} boxes"), "more"))
}

/// Reads and checks the SIZ marker; `None` if `bytes` end in it.
fn header(bytes: &[u8]) -> Result<Option<Header>, Fault> {
    let Some((start, stated)) = codestream(bytes)? else { return Ok(None) };
    let Some(stream) = bytes.get(start..).filter(|s| s.len() >= 42) else { return Ok(None) };
    if !stream.starts_with(&CODESTREAM) {
        return Err(Fault::expected("a codestream that begins with its sizes", format!("{:02x?}", &stream[..4])));
    }
    let field = |at: usize| be32(stream, 8 + 4 * at).unwrap_or(0);
    let [x1, y1, x0, y0, tile_w, tile_h, tile_x, tile_y] = [0, 1, 2, 3, 4, 5, 6, 7].map(field);
    let (length, components) = (be16(stream, 4).unwrap_or(0), be16(stream, 40).unwrap_or(0));
    if !(1..=4).contains(&components) {
        return Err(Fault::expected("1 to 4 components", components.to_string()));
    }
    if length != 38 + 3 * components {
        return Err(Fault::expected(format!("{} bytes of sizes", 38 + 3 * components), length.to_string()));
    }
    let Some(each) = stream.get(42..4 + length) else { return Ok(None) };
    let (width, height) = (x1.saturating_sub(x0), y1.saturating_sub(y0));
    pixels::check_size(height, width)?;
    for component in each.chunks_exact(3) {
        match component[0] {
            7 => {}
            8..=0x7f => return Err(Fault::sixteen(format!("a JPEG 2000 image of {} bits", component[0] + 1))),
            other => {
                let sign = if other & 0x80 == 0 { "" } else { "signed " };
                let found = format!("a JPEG 2000 image of {} {sign}bits", (other & 0x7f) + 1);
                return Err(Fault::expected("8 unsigned bits per channel", found));
            }
        }
        if component[1..] != [1, 1] {
            return Err(Fault::expected("JPEG 2000 components of one size", "sub-sampled ones"));
        }
    }
    if stated.is_some_and(|stated| stated != (height, width)) {
        return Err(Fault::expected(format!("a header of {width}×{height}"), "one of another size"));
    }
    if tile_w == 0 || tile_h == 0 || tile_x > x0 || tile_y > y0 || tile_x + tile_w <= x0 || tile_y + tile_h <= y0 {
        return Err(Fault::expected("tiles that cover the image", format!("{tile_w}×{tile_h} at {tile_x}, {tile_y}")));
    }
    let tiles = (x1 - tile_x).div_ceil(tile_w) as u64 * (y1 - tile_y).div_ceil(tile_h) as u64;
    let tile = (tile_h.min(height) as u64, tile_w.min(width) as u64);
    Ok(Some(Header { end: start + 4 + length, height, width, components, tile, tiles }))
}

/// Height and width; `None` if `bytes` end in the header.
pub(super) fn size(bytes: &[u8]) -> Result<Option<(usize, usize)>, Fault> {
    Ok(header(bytes)?.map(|h| (h.height, h.width)))
}

/// Maxima over all coding styles of a file, for one component of a tile.
#[derive(Debug, Default)]
struct Style {
    layers: u64,
    resolutions: u64,
    /// Most precincts of one resolution.
    most_precincts: u64,
    /// Precincts and code blocks of all resolutions.
    precincts: u64,
    blocks: u64,
}

impl Style {
    /// Adds the coding style at `at` in `segment`, which begins with the number of decompositions. `precincts` is true
    /// if it contains precinct sizes.
    fn add(&mut self, segment: &[u8], at: usize, precincts: bool, tile: (u64, u64)) -> Result<(), Fault> {
        let short = || Fault::expected("a complete coding style", "a short one");
        let &[levels, x, y, ..] = segment.get(at..).ok_or_else(short)? else { return Err(short()) };
        if levels > 32 || x > 8 || y > 8 {
            return Err(Fault::expected("at most 32 decompositions and code blocks of at most 1024 samples", "more"));
        }
        let (mut most, mut all, mut blocks) = (0, 0, 0);
        for r in 0..=levels {
            let sizes = if precincts { *segment.get(at + 5 + usize::from(r)).ok_or_else(short)? } else { 0xff };
            let (px, py) = (sizes & 15, sizes >> 4);
            // Counts and sizes along one axis. There can be an incomplete part before the first and after the last
            // whole one.
            let count = |samples: u64, power: u8| (samples >> power) + 2;
            let side = |samples: u64, down: u8| samples.checked_shr(u32::from(down)).unwrap_or(0) + 1;
            let (height, width) = (side(tile.0, levels - r), side(tile.1, levels - r));
            let found = count(height, py) * count(width, px);
            let (band, bands) = if r == 0 { (0, 1) } else { (1, 3) };
            let (bx, by) = ((x + 2).min(px.saturating_sub(band)), (y + 2).min(py.saturating_sub(band)));
            blocks += bands * count(height >> band, by) * count(width >> band, bx);
            all += bands * found;
            most = most.max(found);
        }
        self.resolutions = self.resolutions.max(u64::from(levels) + 1);
        self.most_precincts = self.most_precincts.max(most);
        self.precincts = self.precincts.max(all);
        self.blocks = self.blocks.max(blocks);
        Ok(())
    }
}

/// Reads all headers of the codestream. Tables of tile lengths become comments, since OpenJPEG would jump to the
/// offsets in them.
fn walk(bytes: &mut [u8], header: Header) -> Result<Style, Fault> {
    let mut style = Style::default();
    let mut at = header.end;
    // End of the tile part with the current header.
    let mut part: Option<usize> = None;
    loop {
        let Some(&[first, code]) = bytes.get(at..at + 2) else { return Ok(style) };
        let bad = |found: &str| Fault::expected("a JPEG 2000 marker", format!("{found} {first:02x}{code:02x}"));
        if first != 0xff {
            return Err(bad("bytes"));
        }
        if code == EOC && part.is_none() {
            return Ok(style);
        }
        if code == SOD {
            // Without a stated length, the tile part extends to the end of the file.
            match part.take() {
                Some(end) if end >= at + 2 => at = end,
                _ => return Err(bad("misplaced marker")),
            }
            continue;
        }
        let Some(length) = be16(bytes, at + 2) else { return Ok(style) };
        let end = at + 2 + length;
        if end > bytes.len() {
            return Ok(style);
        }
        if length < 2 || part.is_some_and(|part| end > part) {
            return Err(bad("a wrong length of marker"));
        }
        if code == TLM {
            bytes[at + 1] = COM;
        }
        let segment = &bytes[at + 4..end];
        match code {
            SOT if part.is_none() && length == 10 => {
                let stated = be32(segment, 2).unwrap_or(0);
                if stated != 0 && stated < 14 {
                    return Err(Fault::expected("a tile part of at least 14 bytes", stated.to_string()));
                }
                part = Some(if stated == 0 { bytes.len() } else { at + stated });
            }
            COD => {
                style.layers = style.layers.max(be16(segment, 2).unwrap_or(0) as u64);
                style.add(segment, 5, segment.first().is_some_and(|s| s & 1 == 1), header.tile)?;
            }
            COC => style.add(segment, 2, segment.get(1).is_some_and(|s| s & 1 == 1), header.tile)?,
            TLM | COM => {}
            _ if KNOWN.contains(&code) => {}
            _ => return Err(bad("the marker")),
        }
        at = end;
    }
}

/// Waits until the memory that OpenJPEG will take at most can be reserved.
fn reserve(header: Header, style: &Style) -> Result<Reservation, Fault> {
    let components = header.components as u64;
    let packets = [style.layers + 1, style.resolutions, components, style.most_precincts, 2];
    let packets = packets.into_iter().fold(1_u64, u64::saturating_mul);
    if packets > MAX_PACKETS {
        return Err(Fault::expected(
            format!("at most {} packets of a tile", MAX_PACKETS / 2),
            (packets / 2).to_string(),
        ));
    }
    let image = (header.height * header.width) as u64 * 5;
    let tile = header.tile.0 * header.tile.1 * 8;
    let parts = style.precincts.saturating_mul(PRECINCT).saturating_add(style.blocks.saturating_mul(BLOCK));
    let each = (image + tile).saturating_add(parts).saturating_add(header.tiles.saturating_mul(TILE_COMPONENT));
    let found = each.saturating_mul(components).saturating_add(header.tiles.saturating_mul(TILE));
    if found > MAX_MEMORY {
        let found = format!("{found} for {}×{} in {} tiles", header.width, header.height, header.tiles);
        return Err(Fault::expected(format!("a JPEG 2000 image that takes at most {MAX_MEMORY} bytes"), found));
    }
    Ok(memory::wait(found))
}

/// Decodes a whole file.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, Fault> {
    let Some(header) = header(bytes)? else {
        return Err(Fault::expected("a complete header", format!("the end of the data after {} bytes", bytes.len())));
    };
    let mut bytes = bytes.to_vec();
    let style = walk(&mut bytes, header)?;
    let _reservation = reserve(header, &style)?;
    // In strict mode truncated data are an error, same as in Pillow.
    let image = Image::from_bytes_with(&bytes, DecodeParameters::new().strict(true)).map_err(Fault::decoder)?;
    match image.color_space() {
        ColorSpace::Unknown | ColorSpace::Unspecified | ColorSpace::SRGB | ColorSpace::Gray => {}
        other => return Err(Fault::expected("a JPEG 2000 image in grey or RGB", format!("one in {other:?}"))),
    }
    let Header { height, width, components: channels, .. } = header;
    let parts = image.components();
    let alike =
        |c: &jpeg2k::ImageComponent| (c.height() as usize, c.width() as usize, c.precision()) == (height, width, 8);
    if parts.len() != channels || !parts.iter().all(alike) {
        return Err(Fault::expected(format!("{channels} components of {width}×{height}"), "others"));
    }
    let mut data = vec![0; height * width * channels];
    for (c, part) in parts.iter().enumerate() {
        for (to, from) in data.iter_mut().skip(c).step_by(channels).zip(part.data()) {
            *to = u8::try_from((*from).clamp(0, 255)).unwrap_or(0);
        }
    }
    Ok(Pixels { height, width, channels, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A codestream with `components` components of `size` (width, height) in tiles of `tile`, `layers` layers and a
    /// coding style (decompositions, powers of code blocks, …, sizes of precincts), and nothing else.
    fn stream(size: [u32; 2], tile: [u32; 2], components: u16, layers: u16, style: &[u8]) -> Vec<u8> {
        let mut out = CODESTREAM.to_vec();
        out.extend((38 + 3 * components).to_be_bytes());
        out.extend([0, 0]);
        for n in [size[0], size[1], 0, 0, tile[0], tile[1], 0, 0] {
            out.extend(n.to_be_bytes());
        }
        out.extend(components.to_be_bytes());
        (0..components).for_each(|_| out.extend([7, 1, 1]));
        out.extend([0xff, COD]);
        out.extend(u16::try_from(7 + style.len()).unwrap().to_be_bytes());
        out.extend([u8::from(style.len() > 5), 0]);
        out.extend(layers.to_be_bytes());
        out.push(0);
        out.extend(style);
        out
    }

    fn refusal(bytes: &[u8]) -> String {
        match decode(bytes) {
            Err(Fault::Expected { expected, found }) => format!("{expected}, found {found}"),
            Err(Fault::Decoder(error)) => format!("OpenJPEG: {error}"),
            Ok(_) => "read".to_owned(),
        }
    }

    #[test]
    fn what_would_take_too_much_memory_is_refused_before_openjpeg_is_called() {
        let plain = [5, 4, 4, 0, 1];
        let memory = "a JPEG 2000 image that takes at most";
        let cases = [
            (stream([5000, 5000], [5000, 5000], 3, 1, &plain), "OpenJPEG: "),
            (stream([5000, 5000], [5000, 5000], 5, 1, &plain), "1 to 4 components"),
            (stream([40_000, 50], [50, 50], 3, 1, &plain), "pixels per side"),
            (stream([20_000, 8000], [20_000, 8000], 4, 1, &plain), memory),
            (stream([5000, 5000], [1, 1], 1, 1, &plain), memory),
            (stream([5000, 5000], [5000, 5000], 3, 1, &[5, 0, 0, 0, 1]), memory),
            (stream([5000, 5000], [5000, 5000], 3, 1, &[1, 4, 4, 0, 1, 0x33, 0x33]), memory),
            (stream([5000, 5000], [5000, 5000], 3, 60_000, &[1, 4, 4, 0, 1, 0x66, 0x66]), "packets of a tile"),
            (stream([50, 50], [0, 50], 3, 1, &plain), "tiles that cover the image"),
            (stream([50, 50], [50, 50], 3, 1, &[99, 4, 4, 0, 1]), "at most 32 decompositions"),
            (stream([50, 50], [50, 50], 3, 1, &[]), "complete coding style"),
        ];
        for (bytes, text) in cases {
            let found = refusal(&bytes);
            assert!(found.contains(text), "{text}: {found}");
        }
    }

    #[test]
    fn a_style_in_a_tile_part_counts_and_what_openjpeg_would_search_or_jump_to_is_refused() {
        let part = |stated: u32, header: &[u8], data: &[u8]| {
            let mut out = stream([5000, 5000], [5000, 5000], 1, 1, &[5, 4, 4, 0, 1]);
            out.extend([0xff, SOT, 0, 10, 0, 0]);
            out.extend(stated.to_be_bytes());
            out.extend([0, 1]);
            out.extend(header);
            out.extend([0xff, SOD]);
            out.extend(data);
            out
        };
        let small = [0xff, COD, 0, 14, 1, 0, 0, 1, 0, 1, 4, 4, 0, 1, 0x33, 0x33];
        let cases = [
            (part(14, &[], &[0xff, EOC]), "OpenJPEG: "),
            (part(0, &small, &[1, 2]), "takes at most"),
            (part(14, &[], &[1, 2]), "a JPEG 2000 marker, found bytes 0102"),
            (part(0, &[0xff, 0x30, 0, 2], &[]), "found the marker ff30"),
            (part(0, &[0xff, 0x74, 0, 2], &[]), "found the marker ff74"),
            (part(13, &[], &[]), "a tile part of at least 14 bytes"),
            (part(16, &[0xff, COM, 0, 9, 0, 0, 0, 0, 0, 0, 0], &[]), "wrong length"),
        ];
        for (bytes, text) in cases {
            let found = refusal(&bytes);
            assert!(found.contains(text), "{text}: {found}");
        }
        let mut tables = stream([50, 50], [50, 50], 1, 1, &[5, 4, 4, 0, 1]);
        let at = tables.len();
        tables.extend([0xff, TLM, 0, 4, 0, 0]);
        let found = header(&tables).unwrap().unwrap();
        walk(&mut tables, found).unwrap();
        assert_eq!(tables[at + 1], COM);
    }

    #[test]
    fn palettes_and_other_sizes_than_the_files_header_says_are_refused() {
        let boxed =
            |kind: &[u8], body: &[u8]| [&u32::try_from(8 + body.len()).unwrap().to_be_bytes()[..], kind, body].concat();
        let file = |width: u8, more: &[u8]| {
            let ihdr = boxed(b"ihdr", &[0, 0, 0, 50, 0, 0, 0, width, 0, 1, 7, 7, 0, 0]);
            let stream = boxed(b"jp2c", &stream([50, 50], [50, 50], 1, 1, &[5, 4, 4, 0, 1]));
            [JPEG_2000, &boxed(b"ftyp", b"jp2 "), &boxed(b"jp2h", &[&ihdr, more].concat()), &stream].concat()
        };
        assert_eq!(size(&file(50, &[])).unwrap(), Some((50, 50)));
        assert!(refusal(&file(49, &[])).contains("a header of 50×50"));
        assert!(refusal(&file(50, &boxed(b"pclr", &[0; 9]))).contains("one with a palette"));
    }
}
