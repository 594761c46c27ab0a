//! BSON numbers by value: 1, 1L, 1.0 and Decimal128 1.00 are one number to a server's index, 0.1 and Decimal128 0.1
//! are two. All arithmetic is exact.

/// A number of any BSON type. Two that a server considers equal are equal here, and no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    /// Not a number, whatever the sign and payload.
    Nan,
    /// Beyond every number.
    Infinite {
        /// Below zero.
        negative: bool,
    },
    /// Every whole number that fits, zero of either sign included.
    Whole(i64),
    /// `coefficient * 10^exponent`, where the coefficient is no multiple of ten and fits a Decimal128.
    Decimal {
        /// Below zero.
        negative: bool,
        /// Digits without trailing zeros; never 0.
        coefficient: u128,
        /// Power of ten.
        exponent: i32,
    },
    /// The bits of a double that no other type can express.
    Double(u64),
}

/// The largest coefficient of a Decimal128: 34 nines.
const COEFFICIENT_MAX: u128 = 10_u128.pow(34) - 1;

/// Reads a double.
pub(super) fn from_f64(number: f64) -> Number {
    const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;
    let negative = number.is_sign_negative();
    if number.is_nan() {
        return Number::Nan;
    }
    if number.is_infinite() {
        return Number::Infinite { negative };
    }
    if number.trunc() == number && (-TWO_TO_63..TWO_TO_63).contains(&number) {
        return Number::Whole(number as i64);
    }
    match double_to_decimal(number) {
        Some((coefficient, exponent)) => decimal(negative, coefficient, exponent),
        None => Number::Double(number.to_bits()),
    }
}

/// Coefficient and power of ten of a finite double other than 0; `None` if that takes more digits than a Decimal128
/// has.
fn double_to_decimal(number: f64) -> Option<(u128, i32)> {
    const FRACTION_BITS: u32 = 52;
    const EXPONENT_BIAS: i32 = 1075;
    let bits = number.to_bits();
    let fraction = bits & ((1 << FRACTION_BITS) - 1);
    let biased = i32::try_from((bits >> FRACTION_BITS) & 0x7ff).ok()?;
    // Subnormal numbers have no hidden bit.
    let (mantissa, exponent) = match biased {
        0 => (fraction, 1 - EXPONENT_BIAS),
        _ => (fraction | (1 << FRACTION_BITS), biased - EXPONENT_BIAS),
    };
    let zeros = mantissa.trailing_zeros();
    let mut mantissa = u128::from(mantissa.checked_shr(zeros)?);
    let mut exponent = exponent + i32::try_from(zeros).ok()?;
    let mut tens = 0;
    if exponent < 0 {
        // m / 2^k = m * 5^k / 10^k
        let power = 5_u128.checked_pow(exponent.unsigned_abs())?;
        mantissa = mantissa.checked_mul(power)?;
        tens = exponent;
    } else {
        // Every factor of five makes a ten with one of the twos.
        while exponent > 0 && mantissa.is_multiple_of(5) {
            mantissa /= 5;
            exponent -= 1;
            tens += 1;
        }
        let shift = u32::try_from(exponent).ok()?;
        if shift > mantissa.leading_zeros() {
            return None;
        }
        mantissa = mantissa.checked_shl(shift)?;
    }
    (mantissa <= COEFFICIENT_MAX).then_some((mantissa, tens))
}

/// Reads the 16 bytes of a Decimal128, which is in the binary integer (BID) encoding.
pub(super) fn from_decimal128(bytes: [u8; 16]) -> Number {
    const EXPONENT_BIAS: i32 = 6176;
    let bits = u128::from_le_bytes(bytes);
    let negative = bits >> 127 == 1;
    match (bits >> 122) & 0b1_1111 {
        0b1_1111 => return Number::Nan,
        0b1_1110 => return Number::Infinite { negative },
        // The form for coefficients from 2^113 up, none of which fits 34 digits: all of these are zero.
        0b1_1000.. => return Number::Whole(0),
        _ => {}
    }
    let coefficient = bits & ((1 << 113) - 1);
    let exponent = i32::try_from((bits >> 113) & 0x3fff).unwrap_or_default() - EXPONENT_BIAS;
    if coefficient > COEFFICIENT_MAX {
        return Number::Whole(0);
    }
    decimal(negative, coefficient, exponent)
}

/// `coefficient * 10^exponent` in its one canonical form.
fn decimal(negative: bool, mut coefficient: u128, mut exponent: i32) -> Number {
    if coefficient == 0 {
        return Number::Whole(0);
    }
    while coefficient.is_multiple_of(10) {
        coefficient /= 10;
        exponent += 1;
    }
    match whole(negative, coefficient, exponent) {
        Some(number) => Number::Whole(number),
        None => Number::Decimal { negative, coefficient, exponent },
    }
}

fn whole(negative: bool, coefficient: u128, exponent: i32) -> Option<i64> {
    let power = 10_i128.checked_pow(u32::try_from(exponent).ok()?)?;
    let magnitude = i128::try_from(coefficient).ok()?.checked_mul(power)?;
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn from_text(text: &str) -> Number {
        from_decimal128(text.parse::<bson::Decimal128>().unwrap().bytes())
    }

    #[test]
    fn reads_every_form_of_decimal128() {
        for (text, number) in [
            ("1", Number::Whole(1)),
            ("1.00", Number::Whole(1)),
            ("1E+2", Number::Whole(100)),
            ("-0", Number::Whole(0)),
            ("0E+6000", Number::Whole(0)),
            ("-9223372036854775808", Number::Whole(i64::MIN)),
            ("Infinity", Number::Infinite { negative: false }),
            ("-Infinity", Number::Infinite { negative: true }),
            ("NaN", Number::Nan),
            ("-0.10", Number::Decimal { negative: true, coefficient: 1, exponent: -1 }),
            ("9E+6000", Number::Decimal { negative: false, coefficient: 9, exponent: 6000 }),
            (
                "9223372036854775808",
                Number::Decimal { negative: false, coefficient: 1 << 63, exponent: 0 },
            ),
        ] {
            assert_eq!(from_text(text), number, "{text}");
        }
    }

    #[test]
    fn coefficients_out_of_range_are_zero() {
        let above: u128 = (6176 << 113) | 10_u128.pow(34);
        assert_eq!(from_decimal128(above.to_le_bytes()), Number::Whole(0));
        let large_form: u128 = 0b11 << 125;
        assert_eq!(from_decimal128(large_form.to_le_bytes()), Number::Whole(0));
    }

    #[test]
    fn doubles_meet_decimals_only_where_both_are_exact() {
        assert_eq!(from_f64(0.5), from_text("0.50"));
        assert_eq!(from_f64(-1.25e-3 * 8.0), from_f64(-0.01));
        assert_eq!(from_f64(1e22), from_text("1E+22"));
        assert_eq!(from_f64(9_223_372_036_854_775_808.0), from_text("9223372036854775808"));
        assert_eq!(from_f64(2_f64.powi(112)), from_text("5192296858534827628530496329220096"));
        let many_tens = from_text("1267650600228229401496703205376E+10");
        assert_eq!(from_f64(2_f64.powi(100) * 1e10), many_tens);
        assert_ne!(from_f64(0.1), from_text("0.1"));
        // 0.1 rounded to 34 digits is still another number.
        assert_ne!(from_f64(0.1), from_text("0.1000000000000000055511151231257827"));
        assert_eq!(from_f64(0.1), Number::Double(0.1_f64.to_bits()));
        assert_eq!(from_f64(5e-324), Number::Double(1));
        assert_eq!(from_f64(f64::MAX), Number::Double(f64::MAX.to_bits()));
    }

    #[test]
    fn large_integers_are_compared_exactly() {
        assert_eq!(from_f64(9_007_199_254_740_992.0), Number::Whole(1 << 53));
        assert_eq!(from_f64(-9_223_372_036_854_775_808.0), Number::Whole(i64::MIN));
        assert_ne!(from_f64(9_223_372_036_854_775_808.0), Number::Whole(i64::MAX));
    }

    #[test]
    fn zeros_and_nans_are_one_each() {
        assert_eq!(from_f64(-0.0), Number::Whole(0));
        assert_eq!(from_f64(-f64::NAN), Number::Nan);
        assert_eq!(from_f64(f64::from_bits(0x7ff8_0000_0000_1234)), from_text("NaN"));
    }

    proptest! {
        #[test]
        fn doubles_are_equal_exactly_when_the_server_says_so(a: f64, b: f64) {
            let equal = a == b || (a.is_nan() && b.is_nan());
            prop_assert_eq!(from_f64(a) == from_f64(b), equal);
            prop_assert_eq!(from_f64(a), from_f64(a));
        }

        /// Rust prints a double with as many digits as asked, exactly.
        #[test]
        fn short_doubles_equal_their_decimal(mantissa in -(1_i64 << 53)..(1 << 53), shift in 0..40) {
            let double = mantissa as f64 / 2_f64.powi(shift);
            let digits = format!("{double:.40}");
            let digits = digits.trim_end_matches('0').trim_end_matches('.');
            if digits.bytes().filter(u8::is_ascii_digit).count() <= 34 {
                prop_assert_eq!(from_f64(double), from_text(digits), "{}", digits);
            }
        }

        #[test]
        fn trailing_zeros_do_not_matter(number: i64, zeros in 0_u32..10) {
            let text = format!("{number}.{}", "0".repeat(zeros as usize + 1));
            prop_assert_eq!(from_text(&text), Number::Whole(number));
        }

        #[test]
        fn any_bits_are_some_number(bits: u128) {
            let number = from_decimal128(bits.to_le_bytes());
            if let Number::Decimal { coefficient, .. } = number {
                prop_assert!(coefficient <= COEFFICIENT_MAX && !coefficient.is_multiple_of(10));
            }
        }
    }
}
