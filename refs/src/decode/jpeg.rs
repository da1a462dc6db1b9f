//! JPEG by libjpeg-turbo, the decoder of Pillow and therefore of every original evaluator.
//!
//! A first pass reads the markers of a file. It finds the size before memory is allocated, rejects a file without an
//! end-of-image marker, and builds a header of only those segments that affect pixels. TurboJPEG reports warnings and
//! errors in the same way and keeps only the text of the first warning. Without metadata, the only possible warnings
//! concern corrupt pixel data, which Pillow accepts.

use std::ops::Range;

use turbojpeg::{Decompressor, Image, PixelFormat};

use super::Fault;
use super::memory;
use super::pixels::{self, Pixels};

/// Most scans of one image, the limit of libjpeg-turbo. Each scan costs a pass over all coefficients, whatever its
/// length.
const MAX_SCANS: usize = 500;
/// Most pixels of all scans together, and number of scans accepted for an image of any size. Encoders write about ten.
const MAX_SCANNED: usize = 1 << 31;
const MIN_SCANS: usize = 16;

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const APP0: u8 = 0xe0;
const APP14: u8 = 0xee;
/// Adobe application segment. Its last byte is the colour transform, here 0.
const ADOBE: [u8; 16] = [0xff, APP14, 0, 14, b'A', b'd', b'o', b'b', b'e', 0, 100, 0, 0, 0, 0, 0];

/// Beginnings of the libjpeg-turbo warnings after which the pixels are complete (`jerror.h`).
const WARNINGS: [&str; 3] = ["Corrupt JPEG data: ", "Inconsistent progression sequence ", "Invalid SOS parameters "];

/// Colour space of the components.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    /// From the markers and the number of components, same as in libjpeg.
    Guessed,
    /// YCbCr, or YCCK if there are four components; converted to RGB or CMYK.
    Converted,
    /// Not converted.
    Stored,
}

/// Fields of the frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) components: u8,
    is_progressive: bool,
}

/// The header of a file up to the first scan.
struct Walk {
    frame: Frame,
    /// Segments before the first scan that affect pixels, in order.
    segments: Vec<Range<usize>>,
    /// Offset of the first scan.
    scan: usize,
}

/// The 16-bit big-endian number at `at`; `None` beyond the end.
pub(super) fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])))
}

/// The next marker at or after `at`: its code and the offset after it. Fill bytes and bytes between segments are
/// skipped, same as in libjpeg and Pillow.
fn marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|b| *b == 0xff)?;
        at += bytes.get(at..)?.iter().position(|b| *b != 0xff)?;
        let code = bytes[at];
        at += 1;
        if code != 0 {
            return Some((code, at));
        }
    }
}

/// Markers without a length: TEM, RST0…RST7, SOI, EOI.
fn is_bare(code: u8) -> bool {
    matches!(code, 0x01 | 0xd0..=0xd9)
}

/// Frame headers: SOF0…SOF15 except DHT, JPG and DAC.
fn is_frame(code: u8) -> bool {
    matches!(code, 0xc0..=0xcf) && !matches!(code, 0xc4 | 0xc8 | 0xcc)
}

/// Reads the header up to the first scan. `None` if `bytes` end before it.
fn walk(bytes: &[u8]) -> Result<Option<Walk>, Fault> {
    let (mut frame, mut segments, mut at) = (None, Vec::new(), 2);
    loop {
        let Some((code, start)) = marker(bytes, at) else { return Ok(None) };
        if is_bare(code) {
            if code == SOI || code == EOI || code == 0x01 {
                return Err(Fault::expected("no such marker before the first scan", format!("marker {code:#04x}")));
            }
            at = start;
            continue;
        }
        let Some(length) = be16(bytes, start) else { return Ok(None) };
        let end = start + length.max(2);
        if end > bytes.len() {
            return Ok(None);
        }
        if code == SOS {
            let frame = frame.ok_or_else(|| Fault::expected("a frame header before the first scan", "none"))?;
            return Ok(Some(Walk { frame, segments, scan: start - 2 }));
        }
        match code {
            _ if is_frame(code) => {
                if frame.is_some() {
                    return Err(Fault::expected("one frame", "two frame headers"));
                }
                frame = Some(frame_of(code, &bytes[start..end])?);
                segments.push(start - 2..end);
            }
            // Pillow does not know these markers and rejects the file. It skips other segments that it does not use.
            0x02..=0xbf => {
                return Err(Fault::expected("a known marker", format!("marker {code:#04x}")));
            }
            // Comments and the other application segments do not affect pixels.
            0xfe => {}
            APP0..=0xef if code != APP0 && code != APP14 => {}
            _ => segments.push(start - 2..end),
        }
        at = end;
    }
}

/// The frame header of marker `code`. `segment` begins with its length.
fn frame_of(code: u8, segment: &[u8]) -> Result<Frame, Fault> {
    let short = || Fault::expected("a complete frame header", "a short one");
    let bits = *segment.get(2).ok_or_else(short)?;
    let (height, width) = (be16(segment, 3).ok_or_else(short)?, be16(segment, 5).ok_or_else(short)?);
    let components = *segment.get(7).ok_or_else(short)?;
    if bits != 8 {
        return Err(Fault::expected("8 bits per channel", format!("a JPEG of {bits} bits")));
    }
    if !matches!(components, 1 | 3 | 4) {
        return Err(Fault::expected("1, 3 or 4 components", components.to_string()));
    }
    if height == 0 || width == 0 {
        return Err(Fault::expected("a size in the frame header", format!("{width}×{height}")));
    }
    Ok(Frame { height, width, components, is_progressive: matches!(code, 0xc2 | 0xc6 | 0xca | 0xce) })
}

/// Checks that an end-of-image marker follows the first scan at `at`, as libjpeg reads markers, and that there are not
/// too many scans.
fn check_end(bytes: &[u8], mut at: usize, frame: Frame) -> Result<(), Fault> {
    let most = (MAX_SCANNED / (frame.height * frame.width)).clamp(MIN_SCANS, MAX_SCANS);
    let mut scans = 0;
    while let Some((code, start)) = marker(bytes, at) {
        if code == EOI {
            return Ok(());
        }
        if code == SOS {
            scans += 1;
            if scans > most {
                return Err(Fault::expected(format!("at most {most} scans of this size"), "more"));
            }
        }
        // Codes below SOF0 have no segment. The entropy decoder of libjpeg stops at them; its marker reader continues
        // after them.
        at = if is_bare(code) || code < 0xc0 { start } else { start + be16(bytes, start).unwrap_or(0) };
    }
    Err(Fault::expected("an end-of-image marker", format!("the end of the data after {} bytes", bytes.len())))
}

/// The frame header; `None` if `bytes` end before the first scan.
pub(super) fn frame(bytes: &[u8]) -> Result<Option<Frame>, Fault> {
    Ok(walk(bytes)?.map(|w| w.frame))
}

/// Decodes a whole file, same as Pillow.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, Fault> {
    let (frame, data) = raw(bytes, Colours::Guessed)?;
    let raw = Pixels { height: frame.height, width: frame.width, channels: usize::from(frame.components), data };
    // Pillow treats every CMYK JPEG as one of Adobe, which are stored inverted.
    Ok(if frame.components == 4 { pixels::cmyk_to_rgb(raw, pixels::Ink::Inverted) } else { raw })
}

/// Decodes to one channel per component: grey, RGB, or CMYK as stored.
pub(super) fn raw(bytes: &[u8], colours: Colours) -> Result<(Frame, Vec<u8>), Fault> {
    let Some(Walk { frame, segments, scan }) = walk(bytes)? else {
        return Err(Fault::expected("a complete header", format!("the end of the data after {} bytes", bytes.len())));
    };
    check_end(bytes, scan, frame)?;
    let mut each = usize::from(frame.components);
    if frame.is_progressive || be16(bytes, scan + 2).is_none_or(|length| length != 6 + 2 * each) {
        // For an image in several scans, all coefficients are kept, with 16 bits each.
        each += 2 * each;
    }
    let _reservation = memory::reserve(frame.height, frame.width, each, 2 * bytes.len())?;

    let mut clean = Vec::with_capacity(bytes.len() + ADOBE.len() + 2);
    clean.extend([0xff, SOI]);
    if colours != Colours::Guessed {
        clean.extend(&ADOBE[..15]);
        clean.push(u8::from(colours == Colours::Converted) * if frame.components == 4 { 2 } else { 1 });
    }
    for range in segments {
        let segment = &bytes[range];
        let from = clean.len();
        match segment[1] {
            APP0 | APP14 if colours != Colours::Guessed => {}
            // libjpeg warns about an unknown JFIF version or Adobe transform and continues with a known one. The known
            // one is written here, so there is no warning.
            APP0 => {
                clean.extend(segment);
                if segment.len() >= 16 && segment[4..9] == *b"JFIF\0" {
                    clean[from + 9] = 1;
                }
            }
            APP14 => {
                clean.extend(segment);
                if segment.len() >= 16 && segment[4..9] == *b"Adobe" {
                    let known: &[u8] = if frame.components == 4 { &[0, 2] } else { &[0, 1] };
                    if !known.contains(&segment[15]) {
                        clean[from + 15] = known[1];
                    }
                }
            }
            _ => clean.extend(segment),
        }
    }
    clean.extend(&bytes[scan..]);

    let format = match frame.components {
        1 => PixelFormat::GRAY,
        3 => PixelFormat::RGB,
        _ => PixelFormat::CMYK,
    };
    let pitch = frame.width * usize::from(frame.components);
    let mut data = vec![0; frame.height * pitch];
    let image = Image { pixels: &mut data[..], width: frame.width, pitch, height: frame.height, format };
    let mut decoder = Decompressor::new().map_err(Fault::decoder)?;
    match decoder.decompress(&clean, image) {
        Ok(()) => Ok((frame, data)),
        Err(turbojpeg::Error::TurboJpegError(text)) if WARNINGS.iter().any(|w| text.starts_with(w)) => {
            Ok((frame, data))
        }
        Err(error) => Err(Fault::decoder(error)),
    }
}
