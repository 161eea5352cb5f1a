//! Drives a connection without a socket, for bench/instructions.sh: `micro wrk 1000`

use std::env;
use std::hint::black_box;

use micro::{Driven, request_of};

fn main() {
    let mut arguments = env::args().skip(1);
    let request = arguments.next().as_deref().and_then(request_of);
    let count = arguments.next().and_then(|count| count.parse::<u32>().ok());
    let (Some(request), Some(count)) = (request, count) else {
        panic!("usage: micro wrk|Prometheus|browser COUNT");
    };
    let mut driven = Driven::default();
    for _ in 0..count {
        black_box(driven.exchange(black_box(request)));
    }
}
