package mta

import "testing"

func TestSizes(t *testing.T) {
	tests := []struct {
		in   string
		want Size
		out  string
	}{
		{"0", 0, "0"}, {"1", 1, "1"}, {"512B", 512, "512"}, {"64KiB", 64 << 10, "64KiB"}, {"64 MiB", 64 << 20, "64MiB"}, {"1.5GiB", 3 << 29, "1536MiB"},
		{"2TiB", 2 << 40, "2TiB"}, {"20MB", 20_000_000, "20000000"}, {" 1kB ", 1000, "1000"}, {"9223372036854775807", 1<<63 - 1, "9223372036854775807"},
	}
	for _, tt := range tests {
		got, err := ParseSize(tt.in)
		if err != nil || got != tt.want || got.String() != tt.out {
			t.Errorf("%q: got %d, written %q (%v)", tt.in, got, got, err)
		}
	}
	for _, s := range []string{"", "MiB", "-1", "-1MiB", "1 megabyte", "1mib", "NaN", "Inf", "0x10", "1e3", "1_000", "8388608TiB", "9223372036854775808", "1MiBB", "+1", "1.MiB", ".5MiB"} {
		if got, err := ParseSize(s); err == nil {
			t.Errorf("%q was read as %d", s, got)
		}
	}
}

// A size is read back as it was written.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"64MiB", "1.5 GiB", "0", "NaN", "9223372036854775807", "0.1KiB", "8388607TiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err != nil {
			return
		}
		if n < 0 {
			t.Errorf("%q is %d", s, n)
		}
		if back, err := ParseSize(n.String()); err != nil || back != n {
			t.Errorf("%q is %d, written %q, read back as %d (%v)", s, n, n, back, err)
		}
	})
}
