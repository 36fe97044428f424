//! The vector operations against the portable ones, bit for bit where both are exact.

#![expect(clippy::needless_range_loop, reason = "an index names the same lane of several arrays")]

use super::*;

/// Bytes that look random, the same every time.
fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..n).map(|_| next()).collect()
}

fn floats<S: Floats>(f: impl FnOnce() -> S::V) -> Vec<u32> {
    let mut out = vec![0.0f32; S::LANES];
    let v = f();
    // SAFETY: as much is there; the caller has asked for the processor.
    unsafe { S::store(out.as_mut_ptr(), v) };
    out.into_iter().map(canonical).collect()
}

fn canonical(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

/// Every decoding of a byte or half, over all its values.
unsafe fn decodes_alike<S: Floats>() {
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let bytes: Vec<u8> = (0..=u8::MAX).collect();
    type P = Portable;
    // SAFETY: the caller has asked for the processor; whole vectors are read.
    unsafe {
        for (i, want) in halves.chunks(16).enumerate() {
            let at = i * 16 / (2 * S::LANES) * (2 * S::LANES);
            let (lane, chunk) = ((i * 16 - at) / 2, halves[at..].as_ptr());
            let got = &floats::<S>(|| S::f16(chunk))[lane..lane + 8];
            assert_eq!(got, floats::<P>(|| P::f16(want.as_ptr())));
            let got = &floats::<S>(|| S::bf16(chunk))[lane..lane + 8];
            assert_eq!(got, floats::<P>(|| P::bf16(want.as_ptr())));
        }
        for (i, want) in bytes.chunks(8).enumerate() {
            let at = i * 8 / S::LANES * S::LANES;
            let got = floats::<S>(|| S::e4m3(bytes[at..].as_ptr()));
            let lane = i * 8 - at;
            assert_eq!(got[lane..lane + 8], floats::<P>(|| P::e4m3(want.as_ptr())));
        }
        for at in (0..bytes.len()).step_by(2 * S::LANES) {
            for part in 0..2 {
                let p = bytes[at..].as_ptr();
                let got = floats::<S>(|| S::e4m3_twice(p, S::splat(0.3))[part]);
                let p = p.add(part * S::LANES);
                let want = floats::<S>(|| S::mul(S::e4m3(p), S::splat(0.3)));
                assert_eq!(got, want);
            }
        }
    }
}

/// The 32 bytes of an integer vector.
unsafe fn raw<S: Bytes>(v: S::I) -> [u8; 32] {
    assert_eq!(size_of::<S::I>(), 32);
    // SAFETY: 32 bytes without padding.
    unsafe { std::mem::transmute_copy(&v) }
}

unsafe fn raw_f<S: Bytes>(v: S::F) -> [u32; 8] {
    let mut out = [0.0; 8];
    // SAFETY: as much is there.
    unsafe { S::store_f(out.as_mut_ptr(), v) };
    out.map(canonical)
}

/// Everything that `Bytes` computes without rounding.
unsafe fn integers<S: Bytes>(seed: u64) -> Vec<[u8; 32]> {
    let data = bytes(1024, seed);
    let p = |at: usize| data[at..].as_ptr();
    // SAFETY: the caller has asked for the processor; at most 1024 bytes are read.
    unsafe {
        let mut x = bytes(256, seed + 1);
        x.iter_mut().filter(|x| **x == 128).for_each(|x| *x = 129);
        let turned = x.as_ptr();
        let x: [S::I; 4] = std::array::from_fn(|i| S::load_i(x[32 * i..].as_ptr()));
        let nibbles = [S::nibbles(p(0)), S::nibbles(p(32))];
        let four = [nibbles[0][0], nibbles[0][1], nibbles[1][0], nibbles[1][1]];
        let acc = S::load_i(p(900));
        let bytes_of = |at: usize| {
            u64::from_le_bytes(data[at..at + 8].try_into().unwrap()) & 0x3f3f_3f3f_3f3f_3f3f
        };
        let mut all = four.to_vec();
        all.push(S::dot_nibbles(four, x));
        all.extend(S::turn([x[0], x[1], x[2], x[3], four[0], four[1], four[2], four[3]]));
        let (apart, numbers) = (S::nibbles_turned::<18>(p(7)), S::e2m1_turned(p(9)));
        all.extend([S::dot_turned(&apart, turned), S::dot_turned_signed(&numbers, turned)]);
        all.extend(apart.into_iter().chain(numbers));
        for quarter in 0..4 {
            let w = S::six_bits(p(64), p(128), quarter);
            all.extend([w, S::dot_small(acc, w, x[quarter])]);
            all.push(S::dot_signed(S::zero_i(), S::load_i(p(200 + quarter)), x[quarter]));
            for scale in S::spread_pairs(p(300)).into_iter().chain(S::spread(bytes_of(17))) {
                all.push(S::dot_scaled(S::zero_i(), w, x[quarter], scale));
            }
        }
        all.extend([S::twice(bytes_of(23)), S::widen(p(40)), S::zero_i()]);
        all.push(S::madd16(acc, S::widen(p(50)), S::twice(bytes_of(60))));
        all.into_iter().map(|v| raw::<S>(v)).collect()
    }
}

unsafe fn scales<S: Bytes>(seed: u64) -> Vec<[u32; 8]> {
    let data = bytes(512, seed);
    let p = |at: usize| data[at..].as_ptr();
    let exponents: Vec<u8> = (0..=u8::MAX).collect();
    // SAFETY: as above.
    unsafe {
        let mut all = vec![
            S::halves::<2>(p(0)),
            S::halves::<4>(p(3)),
            S::halves::<8>(p(5)),
            S::halves_apart::<34>(p(1)),
            S::halves_apart::<18>(p(2)),
            S::to_f(S::load_i(p(70))),
        ];
        all.extend(exponents.chunks(8).map(|e| S::half_e8m0(e.as_ptr())));
        all.into_iter().map(|v| raw_f::<S>(v)).collect()
    }
}

#[test]
fn vectors_mean_what_the_portable_operations_mean() {
    let same_bytes = |name: &str, integers: &dyn Fn(u64) -> Vec<[u8; 32]>| {
        for seed in 1..50 {
            // SAFETY: every processor has the portable operations.
            let want = unsafe { super::tests::integers::<Portable>(seed) };
            assert_eq!(integers(seed), want, "{name}");
        }
    };
    let level = level();
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx2 {
        // SAFETY: the level says that the processor has AVX2, FMA and F16C.
        unsafe {
            decodes_alike::<Avx2>();
            same_bytes("avx2", &|seed| integers::<Avx2>(seed));
            assert_eq!(scales::<Avx2>(3), scales::<Portable>(3));
        }
    }
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        // SAFETY: the level says that the processor has AVX-512.
        unsafe { decodes_alike::<Avx512>() };
    }
}
