package mta

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of octets, written in configuration as "64MiB" or a plain number.
type Size int64

const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
)

var sizeUnits = []struct {
	suffix string
	factor Size
}{
	{"KiB", KiB}, {"MiB", MiB}, {"GiB", GiB}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// ParseSize reads "64MiB", "1.5 GiB", "20MB" or plain octets.
func ParseSize(s string) (Size, error) {
	num, factor := strings.TrimSpace(s), Size(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(num, u.suffix); ok {
			num, factor = strings.TrimSpace(n), u.factor
			break
		}
	}
	if n, ok := scaled(num, factor); ok {
		return n, nil
	}
	return 0, fmt.Errorf("%q is not a size (write 64MiB, 1.5GiB or a number of octets)", s)
}

// scaled multiplies a plain decimal number, "1" or "1.5", with a unit. A whole number is exact.
func scaled(num string, unit Size) (Size, bool) {
	whole, fraction, pointed := strings.Cut(num, ".")
	if !isDigits(whole) || pointed && !isDigits(fraction) {
		return 0, false
	}
	if !pointed {
		n, err := strconv.ParseInt(whole, 10, 64)
		return Size(n) * unit, err == nil && n <= math.MaxInt64/int64(unit)
	}
	f, err := strconv.ParseFloat(num, 64)
	return Size(f * float64(unit)), err == nil && f*float64(unit) < math.MaxInt64
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// String uses the largest binary unit that the size is a multiple of.
func (s Size) String() string {
	for i := 3; i >= 0; i-- {
		if u := sizeUnits[i]; s >= u.factor && s%u.factor == 0 {
			return strconv.FormatInt(int64(s/u.factor), 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(b []byte) error {
	v, err := ParseSize(string(b))
	if err != nil {
		return err
	}
	*s = v
	return nil
}
