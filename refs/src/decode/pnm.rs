//! PBM, PGM and PPM, plain and raw. Maxima other than 255 are scaled as in Pillow.

use super::Fault;
use super::memory;
use super::pixels::{self, Pixels};

/// Longest number in a header or in plain data, as in Pillow.
const MAX_DIGITS: usize = 10;
/// Longest header accepted, bytes. Only comments make a header this long.
const MAX_HEADER: usize = 1 << 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bits,
    Grey,
    Rgb,
}

struct Header {
    kind: Kind,
    plain: bool,
    height: usize,
    width: usize,
    maxval: usize,
    /// Offset of the samples.
    data: usize,
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

/// The next number from `at` on. Moves `at` past the byte that ends the number; `None` if `bytes` end before that.
fn number(bytes: &[u8], at: &mut usize) -> Result<Option<usize>, Fault> {
    let mut digits = String::new();
    while digits.len() <= MAX_DIGITS {
        let Some(byte) = bytes.get(*at) else { return Ok(None) };
        *at += 1;
        if is_space(*byte) {
            if digits.is_empty() {
                continue;
            }
            return match digits.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(Fault::expected("a number", format!("`{digits}`"))),
            };
        }
        if *byte == b'#' {
            let Some(end) = bytes[*at..].iter().position(|b| matches!(b, b'\n' | b'\r')) else { return Ok(None) };
            *at += end + 1;
            continue;
        }
        digits.push(char::from(*byte));
    }
    Err(Fault::expected(format!("numbers of at most {MAX_DIGITS} digits"), format!("`{digits}`")))
}

fn header(bytes: &[u8]) -> Result<Option<Header>, Fault> {
    let (kind, plain) = match bytes {
        [b'P', b'1', ..] => (Kind::Bits, true),
        [b'P', b'2', ..] => (Kind::Grey, true),
        [b'P', b'3', ..] => (Kind::Rgb, true),
        [b'P', b'4', ..] => (Kind::Bits, false),
        [b'P', b'5', ..] => (Kind::Grey, false),
        [b'P', b'6', ..] => (Kind::Rgb, false),
        _ => return Err(Fault::expected("PBM, PGM or PPM (P1 to P6)", "another netpbm format")),
    };
    match bytes.get(2) {
        None => return Ok(None),
        Some(byte) if is_space(*byte) => {}
        Some(_) => return Err(Fault::expected("whitespace after the magic number", "another byte")),
    }
    let (mut at, mut numbers) = (3, [0, 0, 1]);
    let wanted = if kind == Kind::Bits { 2 } else { 3 };
    for slot in &mut numbers[..wanted] {
        match number(&bytes[..bytes.len().min(MAX_HEADER)], &mut at)? {
            Some(number) => *slot = number,
            None if bytes.len() < MAX_HEADER => return Ok(None),
            None => return Err(Fault::expected(format!("a header of at most {MAX_HEADER} bytes"), "a longer one")),
        }
    }
    let [width, height, maxval] = numbers;
    if maxval == 0 || maxval > 65535 {
        return Err(Fault::expected("a maximum from 1 to 65535", maxval.to_string()));
    }
    if maxval > 255 && kind == Kind::Grey {
        return Err(Fault::sixteen(format!("a PGM with the maximum {maxval}")));
    }
    Ok(Some(Header { kind, plain, height, width, maxval, data: at }))
}

/// Height and width; `None` if `bytes` end in the header.
pub(super) fn size(bytes: &[u8]) -> Result<Option<(usize, usize)>, Fault> {
    Ok(header(bytes)?.map(|h| (h.height, h.width)))
}

/// 255 · `value` / `maxval`, rounded half to even, at most 255.
fn scaled(value: usize, maxval: usize) -> u8 {
    let (whole, rest) = (value * 255 / maxval, value * 255 % maxval);
    let up = match (2 * rest).cmp(&maxval) {
        std::cmp::Ordering::Less => 0,
        std::cmp::Ordering::Equal => whole % 2,
        std::cmp::Ordering::Greater => 1,
    };
    u8::try_from(whole + up).unwrap_or(255)
}

/// Decodes a whole file.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, Fault> {
    let short = |found: usize, wanted: usize| Fault::expected(format!("{wanted} samples"), format!("{found}"));
    let Some(h) = header(bytes)? else { return Err(Fault::expected("a complete header", "the end of the data")) };
    let channels = if h.kind == Kind::Rgb { 3 } else { 1 };
    let _reservation = memory::reserve(h.height, h.width, channels, bytes.len())?;
    let wanted = h.height * h.width * channels;
    let body = &bytes[h.data..];
    let data = match (h.kind, h.plain) {
        (Kind::Bits, true) => plain_bits(body, wanted)?,
        (_, true) => plain(body, wanted, h.maxval)?,
        (Kind::Bits, false) => {
            let length = h.height * h.width.div_ceil(8);
            let rows = body.get(..length).ok_or_else(|| short(body.len() * 8, wanted))?;
            let bits = pixels::unpack(rows, h.height, h.width, 1).into_owned();
            bits.into_iter().map(|bit| if bit == 1 { 0 } else { 255 }).collect()
        }
        (_, false) if h.maxval > 255 => body
            .chunks_exact(2)
            .take(wanted)
            .map(|p| scaled(usize::from(u16::from_be_bytes([p[0], p[1]])), h.maxval))
            .collect(),
        (_, false) => body.iter().take(wanted).map(|p| scaled(usize::from(*p), h.maxval)).collect(),
    };
    let found = data.len();
    if found < wanted {
        return Err(short(found, wanted));
    }
    Ok(Pixels { height: h.height, width: h.width, channels, data })
}

/// Tokens of plain data, without comments.
fn tokens(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.split(|b| matches!(b, b'\n' | b'\r'))
        .map(|line| line.split(|b| *b == b'#').next().unwrap_or(line))
        .flat_map(|line| line.split(|b| is_space(*b)))
        .filter(|token| !token.is_empty())
}

/// The fault for data after the plain samples. Pillow reads part of such data, depending on its block boundaries; here
/// it is an error.
fn trailing(wanted: usize) -> Fault {
    Fault::expected(format!("{wanted} samples"), "more after them")
}

fn plain_bits(body: &[u8], wanted: usize) -> Result<Vec<u8>, Fault> {
    let mut data = Vec::new();
    for byte in tokens(body).flatten().copied() {
        match byte {
            _ if data.len() == wanted => return Err(trailing(wanted)),
            b'0' => data.push(255),
            b'1' => data.push(0),
            other => return Err(Fault::expected("0 or 1", format!("the byte {other:#04x}"))),
        }
    }
    Ok(data)
}

fn plain(body: &[u8], wanted: usize, maxval: usize) -> Result<Vec<u8>, Fault> {
    let mut data = Vec::new();
    for token in tokens(body) {
        if data.len() == wanted {
            return Err(trailing(wanted));
        }
        let number = std::str::from_utf8(token).ok().filter(|t| t.len() <= MAX_DIGITS).and_then(|t| t.parse().ok());
        match number {
            Some(value) if value <= maxval => data.push(scaled(value, maxval)),
            _ => {
                let found = String::from_utf8_lossy(&token[..token.len().min(MAX_DIGITS)]).into_owned();
                return Err(Fault::expected(format!("numbers from 0 to {maxval}"), format!("`{found}`")));
            }
        }
    }
    Ok(data)
}
