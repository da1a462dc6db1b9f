//! Download of a file from its sources: attempts, continuation and verification.

use std::path::PathBuf;
use std::time::Duration;

use ureq::http::header;

use crate::error::{Error, Result, is_page};
use crate::hash::PublishedHash;
use crate::http::{Answer, Ask, Piece, ask, refused};
use crate::partial::{Entity, Partial};
use crate::progress::{Event, Watch};
use crate::record::{RECORD, Record, sidecar};
use crate::request::{HashCheck, Request};
use crate::settings::Settings;
use crate::source::Source;

/// Bytes received in an attempt that reset the count of failures in a row.
const PROGRESS: u64 = 1 << 20;
/// Most doublings of the wait between attempts.
const MAX_DOUBLINGS: u32 = 6;

/// A requested file, and the known facts about it.
pub(crate) struct Job<'a> {
    pub(crate) request: &'a Request,
    pub(crate) settings: &'a Settings,
    pub(crate) watch: Watch<'a>,
    /// Path of the file in the cache.
    pub(crate) target: PathBuf,
    /// The record of the file.
    pub(crate) record: Option<Record>,
}

/// The result when all bytes are in the partial file.
struct Received {
    /// The requested address; `None` if an earlier run received all bytes.
    url: Option<String>,
    content_type: Option<String>,
    announced: Option<String>,
}

impl Job<'_> {
    /// Compares a hash with the published or learned one. `place` and `content_type` are for the error.
    pub(crate) fn check(&self, sha256: &str, place: &str, content_type: Option<&str>) -> Result<HashCheck> {
        let expected = &self.request.sha256;
        let (place, found, content_type) = (place.to_owned(), sha256.to_owned(), content_type.map(str::to_owned));
        if !expected.allows(sha256) {
            return Err(Error::WrongHash { place, expected: expected.clone(), found, content_type });
        }
        match self.record.as_ref().map(|record| &record.sha256).filter(|_| !expected.is_full()) {
            Some(learned) if learned != sha256 => {
                let record = sidecar(&self.target, RECORD);
                Err(Error::Changed { place, learned: learned.clone(), found, content_type, record })
            }
            _ if expected.bits() > 0 => Ok(HashCheck::Published { bits: expected.bits() }),
            Some(_) => Ok(HashCheck::LearnedBefore),
            None => Ok(HashCheck::LearnedNow),
        }
    }

    /// Fills `partial` from the first source that has the file. Returns that source and how the file was checked.
    pub(crate) fn download<'s>(
        &mut self,
        sources: &[&'s Source],
        partial: &mut Partial,
    ) -> Result<(&'s Source, HashCheck)> {
        self.resume(sources, partial)?;
        let mut errors = Vec::new();
        for (i, source) in sources.iter().enumerate() {
            let last = i + 1 == sources.len();
            match self.download_from(source, last, partial) {
                Ok(check) => return Ok((source, check)),
                Err(error) if is_fatal(&error) => return Err(error),
                Err(error) => {
                    if !last {
                        self.watch.report(&Event::NextSource { error: &error })?;
                    }
                    errors.push(error);
                }
            }
        }
        Err(if errors.len() == 1 { errors.remove(0) } else { Error::AllFailed { errors } })
    }

    /// Hashes the bytes of an earlier run, or discards them if they cannot be continued.
    fn resume(&mut self, sources: &[&Source], partial: &mut Partial) -> Result<()> {
        let known = partial.entity().is_some_and(|entity| {
            let ours = self.request.sha256.is_full() || sources.iter().any(|s| s.to_string() == entity.source);
            ours && entity.length.or(self.request.bytes).is_none_or(|length| partial.done() <= length)
        });
        if partial.done() == 0 {
            Ok(())
        } else if known {
            partial.resume(&mut self.watch)
        } else {
            self.start_over(partial, "the source of the partial file is unknown")
        }
    }

    fn start_over(&mut self, partial: &mut Partial, reason: &'static str) -> Result<()> {
        partial.clear()?;
        self.watch.report(&Event::StartedOver { reason })
    }

    /// Attempts to fill `partial` from `source` until the source is given up.
    fn download_from(&mut self, source: &Source, last: bool, partial: &mut Partial) -> Result<HashCheck> {
        let mut failures = 0;
        let mut started_over = false;
        loop {
            let before = partial.done();
            let error = match self.receive(source, partial) {
                Ok(received) => match self.verify(source, partial, &received) {
                    Ok(check) => return Ok(check),
                    Err(error) if partial.is_pieced() && !started_over => {
                        // One of the pieces can be from another file.
                        started_over = true;
                        drop(error);
                        self.start_over(partial, "the file received in several parts failed verification")?;
                        continue;
                    }
                    Err(error) => {
                        partial.clear()?;
                        return Err(error);
                    }
                },
                Err(error) => error,
            };
            let unreached = matches!(error, Error::Connection { .. });
            if !is_temporary(&error) || (unreached && !last) {
                return Err(error);
            }
            if partial.done().saturating_sub(before) >= PROGRESS {
                failures = 0;
            }
            failures += 1;
            let asked = match &error {
                Error::Status { retry_after, .. } => retry_after.unwrap_or_default(),
                _ => Duration::ZERO,
            };
            if failures > self.settings.retries || asked > self.settings.longest_wait {
                return Err(error);
            }
            let backoff = self.settings.backoff.saturating_mul(1 << (failures - 1).min(MAX_DOUBLINGS));
            let of = self.settings.retries + 1;
            self.watch.sleep(asked.max(backoff), |wait| Event::Retrying { error: &error, failures, of, wait })?;
        }
    }

    /// Receives the missing bytes of `partial`.
    fn receive(&mut self, source: &Source, partial: &mut Partial) -> Result<Received> {
        loop {
            if partial.done() > 0 && partial.entity().is_some_and(|entity| entity.length == Some(partial.done())) {
                let announced = partial.entity().and_then(|entity| entity.announced.clone());
                return Ok(Received { url: None, content_type: None, announced });
            }
            let wanted = self.plan(source, partial)?;
            let answer = ask(source, self.settings, &wanted, &mut self.watch)?;
            // `None` follows only a request for a range. The next request is for the whole file.
            if let Some(received) = self.take(source, &wanted, answer, partial)? {
                return Ok(received);
            }
        }
    }

    /// The part of the file to request.
    fn plan(&mut self, source: &Source, partial: &mut Partial) -> Result<Ask> {
        if partial.done() == 0 {
            return Ok(Ask::default());
        }
        let entity = partial.entity().filter(|entity| entity.source == source.to_string());
        let if_range = entity.and_then(|entity| entity.validator.clone());
        if if_range.is_some() || self.request.sha256.is_full() {
            return Ok(Ask { from: Some(partial.done()), if_range });
        }
        let reason = if entity.is_some() {
            "the server does not identify the version of the file"
        } else {
            "the partial file is from another source, and no sha256 is published"
        };
        self.start_over(partial, reason)?;
        Ok(Ask::default())
    }

    /// Handles a response to `wanted`; `None` if the whole file must be requested.
    fn take(
        &mut self,
        source: &Source,
        wanted: &Ask,
        mut answer: Answer,
        partial: &mut Partial,
    ) -> Result<Option<Received>> {
        let changed = partial.entity().is_some_and(|entity| {
            let other = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
            other(&entity.announced, &answer.announced.sha256)
                || (wanted.if_range.is_some() && answer.status == 206 && other(&entity.validator, &validator(&answer)))
        });
        let total = match (answer.status.as_u16(), wanted.from) {
            (200, from) => {
                if from.is_some() {
                    self.start_over(partial, "the server sends the whole file")?;
                }
                length(&answer)
            }
            (206, Some(from)) => {
                let range = answer.text(header::CONTENT_RANGE).and_then(content_range);
                let known = partial.entity().and_then(|entity| entity.length);
                match range {
                    Some((start, total))
                        if start == from && !changed && (total.is_none() || known.is_none_or(|k| Some(k) == total)) =>
                    {
                        total.or(known)
                    }
                    _ => {
                        self.start_over(partial, "the server sent a different range than requested")?;
                        return Ok(None);
                    }
                }
            }
            (416, Some(from)) => {
                let total = answer.text(header::CONTENT_RANGE).and_then(unsatisfied);
                let known = partial.entity().and_then(|entity| entity.length);
                if total == Some(from) && known.is_none_or(|known| known == from) && !changed {
                    let announced = answer.announced.sha256.clone();
                    return Ok(Some(Received { url: Some(answer.asked), content_type: None, announced }));
                }
                self.start_over(partial, "the server has no data beyond the partial file")?;
                return Ok(None);
            }
            _ => return Err(refused(&answer)),
        };
        if let Err(error) = self.accept(&answer, total) {
            // Bytes received before from this source are of the same wrong file. Bytes from another source can be of
            // the requested file.
            if partial.entity().is_some_and(|entity| entity.source == source.to_string()) {
                partial.clear()?;
            }
            return Err(error);
        }
        if partial.done() > 0 {
            partial.continue_with_another();
        } else {
            let (validator, announced) = (validator(&answer), answer.announced.sha256.clone());
            partial.begin(Entity { source: source.to_string(), validator, length: total, announced })?;
        }
        self.read(&mut answer, total, partial)?;
        let content_type = answer.content_type();
        Ok(Some(Received { url: Some(answer.asked), content_type, announced: answer.announced.sha256 }))
    }

    /// Checks the header of a response. Another length or hash, a web page, or a file without recognisable end is an
    /// error.
    fn accept(&self, answer: &Answer, total: Option<u64>) -> Result<()> {
        let content_type = answer.content_type();
        let place = &answer.asked;
        if let Some(sha256) = &answer.announced.sha256 {
            self.check(sha256, place, None)?;
        }
        for expected in [self.request.bytes, answer.announced.bytes].into_iter().flatten() {
            if let Some(found) = total.filter(|found| *found != expected) {
                return Err(Error::WrongSize { place: place.clone(), expected, found, content_type });
            }
        }
        let hash = self.request.sha256.bits() > 0 || self.record.is_some() || answer.announced.sha256.is_some();
        if hash || self.request.bytes.is_some() {
            return Ok(());
        }
        let page_wanted = [".html", ".htm", ".xhtml"].iter().any(|ending| self.request.name.ends_with(ending));
        match content_type.filter(|kind| is_page(kind) && !page_wanted) {
            Some(content_type) => Err(Error::WebPage { url: place.clone(), content_type }),
            None if !answer.has_end() => Err(Error::NoLength { url: place.clone() }),
            None => Ok(()),
        }
    }

    /// Appends the body of `answer` to `partial`.
    fn read(&mut self, answer: &mut Answer, total: Option<u64>, partial: &mut Partial) -> Result<()> {
        let most = total.or(self.request.bytes).or(answer.announced.bytes);
        while let Piece::Bytes(bytes) = answer.next(partial.done(), total, &mut self.watch)? {
            let found = partial.done() + bytes.len() as u64;
            if let Some(expected) = most.filter(|most| found > *most) {
                partial.clear()?;
                let (place, content_type) = (answer.asked.clone(), answer.content_type());
                return Err(Error::WrongSize { place, expected, found, content_type });
            }
            partial.append(&bytes, total)?;
        }
        let done = partial.done();
        self.watch.report(&Event::Receiving { done, total })?;
        match total {
            Some(total) if done < total => Err(Error::BrokenOff { url: answer.url.clone(), done, total: Some(total) }),
            _ => Ok(()),
        }
    }

    /// Compares the received file with the known facts about it.
    fn verify(&self, source: &Source, partial: &Partial, received: &Received) -> Result<HashCheck> {
        let place = match &received.url {
            Some(url) => url.clone(),
            None => source.url(self.settings)?.shown(),
        };
        let content_type = received.content_type.as_deref();
        if let Some(expected) = self.request.bytes.filter(|expected| *expected != partial.done()) {
            let content_type = content_type.map(str::to_owned);
            return Err(Error::WrongSize { place, expected, found: partial.done(), content_type });
        }
        let found = partial.sha256();
        let check = self.check(&found, &place, content_type)?;
        match &received.announced {
            Some(announced) if *announced != found => {
                let (expected, content_type) = (PublishedHash::parse(announced)?, content_type.map(str::to_owned));
                Err(Error::WrongHash { place, expected, found, content_type })
            }
            _ => Ok(check),
        }
    }
}

/// Whether another source would fail in the same way.
const fn is_fatal(error: &Error) -> bool {
    matches!(error, Error::Interrupted | Error::NoSpace { .. } | Error::Io(_) | Error::Setting { .. })
}

/// Whether a later attempt can succeed.
const fn is_temporary(error: &Error) -> bool {
    match error {
        Error::Connection { .. } | Error::Stalled { .. } | Error::BrokenOff { .. } => true,
        Error::Status { code, .. } => matches!(code, 408 | 425 | 429 | 500 | 502..=504),
        _ => false,
    }
}

/// `Content-Length`, unless there is a transfer encoding.
fn length(answer: &Answer) -> Option<u64> {
    let chunked = answer.headers.contains_key(header::TRANSFER_ENCODING);
    answer.text(header::CONTENT_LENGTH).filter(|_| !chunked)?.parse().ok()
}

/// First byte and length of the whole file from `bytes FIRST-LAST/TOTAL`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    // All bytes from the first one on are requested. A shorter range would have no recognisable end.
    (first <= last && total.is_none_or(|total| last.checked_add(1) == Some(total))).then_some((first, total))
}

/// Length of the whole file from `bytes */TOTAL`.
fn unsatisfied(text: &str) -> Option<u64> {
    text.strip_prefix("bytes */")?.trim().parse().ok()
}

/// Identifies the version of the file byte for byte: a strong ETag, or a `Last-Modified` before the `Date` of the
/// response.
fn validator(answer: &Answer) -> Option<String> {
    if let Some(tag) = answer.text(header::ETAG) {
        return (tag.starts_with('"') && tag.len() > 2).then(|| tag.to_owned());
    }
    let time = |name| httpdate::parse_http_date(answer.text(name)?).ok();
    let (changed, now) = (time(header::LAST_MODIFIED)?, time(header::DATE)?);
    let older = now.duration_since(changed).is_ok_and(|age| age >= Duration::from_secs(1));
    older.then(|| answer.text(header::LAST_MODIFIED).map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        for (text, range) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes 5-8/10", None),
            ("bytes 9-5/10", None),
            ("bytes 5-9", None),
            ("items 5-9/10", None),
            ("bytes 5-18446744073709551615/10", None),
        ] {
            assert_eq!(content_range(text), range, "{text}");
        }
        assert_eq!((unsatisfied("bytes */10"), unsatisfied("bytes 5-9/10")), (Some(10), None));
    }
}
