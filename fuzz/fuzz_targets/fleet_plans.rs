#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(|data: &[u8]| vireo_fuzz::fleet_plans::run(data));
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| vireo_fuzz::json::mutate(
    data, size, max_size, seed
));
