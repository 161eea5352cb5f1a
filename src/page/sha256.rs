//! SHA-256 (FIPS 180-4) and Base64 (RFC 4648, section 4), evaluated at compile time: the page's
//! `Content-Security-Policy` names its script and its style by their hashes.

/// The fractional parts of the cube roots of the first 64 primes.
#[rustfmt::skip]
const ROUND_CONSTANTS: [u32; 64] = [
    0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
    0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
    0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
    0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
    0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
];

/// Returns the SHA-256 of a message.
pub const fn sha256(message: &[u8]) -> [u8; 32] {
    let mut state: [u32; 8] = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];
    let padded = (message.len() + 9).div_ceil(64) * 64;
    let mut block = 0;
    while block < padded {
        state = compress(state, message, block, padded);
        block += 64;
    }
    let mut digest = [0; 32];
    let mut index = 0;
    while index < 32 {
        digest[index] = state[index / 4].to_be_bytes()[index % 4];
        index += 1;
    }
    digest
}

// The names are the standard's.
#[expect(clippy::many_single_char_names)]
const fn compress(state: [u32; 8], message: &[u8], block: usize, padded: usize) -> [u32; 8] {
    let mut words = [0_u32; 64];
    let mut index = 0;
    while index < 64 {
        let at = block + index;
        words[index / 4] = words[index / 4] << 8 | padded_byte(message, at, padded) as u32;
        index += 1;
    }
    let mut round = 16;
    while round < 64 {
        let (early, late) = (words[round - 15], words[round - 2]);
        let early = early.rotate_right(7) ^ early.rotate_right(18) ^ early >> 3;
        let late = late.rotate_right(17) ^ late.rotate_right(19) ^ late >> 10;
        words[round] = words[round - 16]
            .wrapping_add(early)
            .wrapping_add(words[round - 7])
            .wrapping_add(late);
        round += 1;
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = state;
    let mut round = 0;
    while round < 64 {
        let first = h
            .wrapping_add(e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25))
            .wrapping_add(e & f ^ !e & g)
            .wrapping_add(ROUND_CONSTANTS[round])
            .wrapping_add(words[round]);
        let second = (a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22))
            .wrapping_add(a & b ^ a & c ^ b & c);
        (h, g, f, e) = (g, f, e, d.wrapping_add(first));
        (d, c, b, a) = (c, b, a, first.wrapping_add(second));
        round += 1;
    }
    let mut sums = [a, b, c, d, e, f, g, h];
    let mut index = 0;
    while index < 8 {
        sums[index] = sums[index].wrapping_add(state[index]);
        index += 1;
    }
    sums
}

/// Returns a byte of the padded message: of the message, of the padding after it, or of the length in
/// bits at the end.
const fn padded_byte(message: &[u8], at: usize, padded: usize) -> u8 {
    if at < message.len() {
        message[at]
    } else if at == message.len() {
        0x80
    } else if at + 8 < padded {
        0
    } else {
        (message.len() as u64 * 8).to_be_bytes()[at + 8 - padded]
    }
}

/// Encodes a digest in Base64, with its padding.
pub const fn base64(digest: [u8; 32]) -> [u8; 44] {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = [b'='; 44];
    let mut index = 0;
    // 256 bits fill 43 digits of six bits. The last two bits of the last digit are 0.
    while index < 43 {
        let bit = index * 6;
        let low = if bit / 8 + 1 < 32 {
            digest[bit / 8 + 1]
        } else {
            0
        };
        let pair = u16::from_be_bytes([digest[bit / 8], low]);
        text[index] = ALPHABET[(pair >> (10 - bit % 8) & 63) as usize];
        index += 1;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(message: &[u8]) -> String {
        base64(sha256(message)).map(char::from).iter().collect()
    }

    /// As `openssl dgst -sha256 -binary | base64` prints them.
    #[test]
    fn hashes_agree_with_openssl_at_every_length_of_the_padding() {
        for (length, expected) in [
            (0, "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
            (1, "ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs="),
            (55, "n0OQ+NMMLdkuyfCVtl4rmumwqSWlJY4kHJ8ekQ9zQxg="),
            (56, "s1Q5pKxvCUi21vnjxq8PX1kM4g8b3nCQ73lwaG7Gc4o="),
            (63, "fT50oF19sVvOStnsBljqmOPwbu7PFrTG//LaRX3cLzQ="),
            (64, "/+BU/nrgy23GXDr5th1SCfQ5hR20PQulmXM33xVGaOs="),
            (119, "MeulHDE6XAgiat8Y1KNZz9/Y0ugWsT9K+VL36mWE3Ps="),
            (120, "Lz0zVDLHC1gK8Ojhs2dKfAINaDql9zqq7f3FWvkEwhw="),
            (1000, "Qe3s5C1j6Nm/UVqbppMuHCDLyfWl0TRkWttdsblzfqM="),
        ] {
            assert_eq!(hash(&vec![b'a'; length]), expected, "{length}");
        }
        assert_eq!(hash(b"abc"), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
    }
}
