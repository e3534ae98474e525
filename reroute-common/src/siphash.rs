//! SipHash-2-4 over whole 64-bit little-endian words: small enough for the verifier, and one code for both sides.

#[inline(always)]
const fn round(mut v: [u64; 4]) -> [u64; 4] {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
    v
}

/// SipHash-2-4 of `words` (their bytes, little endian) under `key`.
#[inline(always)]
pub fn hash<const N: usize>(key: [u64; 2], words: &[u64; N]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let mut i = 0;
    while i < N {
        v[3] ^= words[i];
        v = round(round(v));
        v[0] ^= words[i];
        i += 1;
    }
    let last = ((N as u64) * 8) << 56;
    v[3] ^= last;
    v = round(round(v));
    v[0] ^= last;
    v[2] ^= 0xff;
    v = round(round(round(round(v))));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher;

    #[test]
    fn agrees_with_the_reference() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let words = [0x1122_3344_5566_7788_u64, 1, u64::MAX, 0, 42];
        let mut reference = siphasher::sip::SipHasher24::new_with_keys(key[0], key[1]);
        for w in words {
            reference.write(&w.to_le_bytes());
        }
        assert_eq!(super::hash(key, &words), reference.finish());
    }
}
