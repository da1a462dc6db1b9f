//! Settings of libtorch, which are the process's: a test file of its own.
#![cfg(feature = "train")]
#![allow(missing_docs, reason = "a test")]

use d2o::train::numerics::Numerics;

#[test]
fn settings_reach_libtorch() {
    // What the settings are there for: libtorch begins with convolutions in TF32, which the original turns off.
    assert!(Numerics::current().tf32);
    for (tf32, deterministic) in [(false, false), (true, true), (false, true), (true, false)] {
        let numerics = Numerics { tf32, deterministic };
        numerics.apply();
        assert_eq!(Numerics::current(), numerics);
    }
}
