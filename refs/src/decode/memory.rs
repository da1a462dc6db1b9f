//! Limits on the memory of decoders, over all threads.

use std::sync::{Condvar, Mutex, PoisonError};

use super::Fault;
use super::pixels;

/// Most bytes that one image, including its file, can take while it is decoded. The largest RGBA image of Pillow has
/// 716 MB.
const MAX: u64 = 880 << 20;
/// Most bytes of all images that are decoded at the same time, unless there is only one.
const TOGETHER: u64 = 512 << 20;

static TAKEN: Mutex<u64> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// A reservation of memory, released when it is dropped.
#[derive(Debug)]
pub(super) struct Reservation(u64);

impl Drop for Reservation {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        FREED.notify_all();
    }
}

/// Waits until the memory can be reserved to decode `height` × `width` pixels at `each` bytes per pixel from a file of
/// `file` bytes. It is an error if one image needs too much.
pub(super) fn reserve(height: usize, width: usize, each: usize, file: usize) -> Result<Reservation, Fault> {
    pixels::check_size(height, width)?;
    let found = (height * width) as u64 * each as u64 + file as u64;
    if found > MAX {
        let expected = format!("an image that takes at most {MAX} bytes while it is decoded");
        return Err(Fault::expected(expected, format!("{found} for {width}×{height}")));
    }
    Ok(wait(found))
}

/// Waits until `bytes` can be reserved.
pub(super) fn wait(bytes: u64) -> Reservation {
    // A reservation of more than `TOGETHER` waits until it is the only one.
    let share = bytes.min(TOGETHER);
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    while *taken + share > TOGETHER {
        taken = FREED.wait(taken).unwrap_or_else(PoisonError::into_inner);
    }
    *taken += share;
    Reservation(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_images_are_decoded_one_at_a_time() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let _reservation = reserve(10_000, 10_000, 3, 0).unwrap();
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    running.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
        assert!(reserve(13_370, 13_370, 5, 1 << 20).is_ok());
        assert!(reserve(13_370, 13_370, 6, 0).is_err());
    }
}
