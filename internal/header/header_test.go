package header

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"understudy/internal/mta"
)

// scanned is what Scan gives, on one line a field.
func scanned(t *testing.T, r io.Reader) (Header, []string) {
	t.Helper()
	var got []string
	h, err := Scan(r, func(f *Field) error {
		got = append(got, fmt.Sprintf("%d-%d %s=%q", f.Span.Start, f.Span.End, f.Name, f.Value))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return h, got
}

func TestAHeaderIsReadAsItStands(t *testing.T) {
	tests := []struct {
		name, in string
		want     []string
		ended    bool
		octets   int64
	}{
		{"nothing", "", nil, false, 0},
		{"no header", "\r\nbody: x\r\n", nil, true, 0},
		{"plain", "A: 1\r\nB:2\r\n\r\nC: 3\r\n", []string{`0-6 A=" 1"`, `6-11 B="2"`}, true, 11},
		{"folded", "A: 1\r\n 2\r\n\t3\r\nB: 4\r\n\r\n", []string{`0-14 A=" 1\r\n 2\r\n\t3"`, `14-20 B=" 4"`}, true, 20},
		{"no body", "A: 1\r\n", []string{`0-6 A=" 1"`}, false, 6},
		{"no last newline", "A: 1\r\nB: 2", []string{`0-6 A=" 1"`, `6-10 B=" 2"`}, false, 10},
		{"bare newlines", "A: 1\nB: 2\n\nC: 3\n", []string{`0-5 A=" 1"`, `5-10 B=" 2"`}, true, 10},
		{"blanks before the colon", "A \t: 1\r\n\r\n", []string{`0-8 A=" 1"`}, true, 8},
		{"a fold before the colon", "A\r\n : 1\r\n\r\n", []string{`0-9 A=" 1"`}, true, 9},
		{"a line that is no field", "A: 1\r\nhello\r\n world\r\nB: 2\r\n\r\n", []string{`0-6 A=" 1"`, `6-21 ="hello\r\n world"`, `21-27 B=" 2"`}, true, 27},
		{"a name with a blank in it", "A b: 1\r\n\r\n", []string{`0-8 ="A b: 1"`}, true, 8},
		{"an empty name", ": 1\r\n\r\n", []string{`0-5 =": 1"`}, true, 5},
		{"a name beyond ASCII", "\xc3\xa4: 1\r\n\r\n", []string{`0-7 ="ä: 1"`}, true, 7},
		{"a continuation of nothing", " x\r\nA: 1\r\n\r\n", []string{`0-4 =" x"`, `4-10 A=" 1"`}, true, 10},
		{"a line of blanks goes on", "A: 1\r\n \r\nB: 2\r\n\r\n", []string{`0-9 A=" 1\r\n "`, `9-15 B=" 2"`}, true, 15},
		{"a bare CR is no end", "A: 1\r\r\nB: 2\r\n\r\n", []string{`0-7 A=" 1\r"`, `7-13 B=" 2"`}, true, 13},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(tt.in), iotest.OneByteReader(strings.NewReader(tt.in)), iotest.DataErrReader(strings.NewReader(tt.in))} {
				h, got := scanned(t, r)
				if !slices.Equal(got, tt.want) {
					t.Errorf("got %q, want %q", got, tt.want)
				}
				if h.Ended != tt.ended || h.Octets != tt.octets || h.Over || h.Fields != len(tt.want) {
					t.Errorf("got %+v, want %d octets, ended %v", h, tt.octets, tt.ended)
				}
			}
		})
	}
}

func TestWhatAFieldTellsOfItself(t *testing.T) {
	in := "Subject: one\r\n two \x00\r\n" + "X: " + strings.Repeat("y", 2000) + "\r\n\r\n"
	var fields []Field
	_, err := Scan(strings.NewReader(in), func(f *Field) error { fields = append(fields, *f); return nil })
	if err != nil || len(fields) != 2 {
		t.Fatal(fields, err)
	}
	if f := fields[0]; !f.Is("SUBJECT") || f.Longest != 12 || !f.NUL {
		t.Errorf("got %+v", f)
	}
	if f := fields[1]; f.Is("Subject") || f.Longest != 2003 || f.NUL || f.Cut {
		t.Errorf("got longest %d", f.Longest)
	}
	if got := (&Field{Value: []byte(" one\r\n two ")}).Text(); got != "one two" {
		t.Errorf("got %q", got)
	}
}

func TestALongFieldIsKeptInPart(t *testing.T) {
	long := "A: " + strings.Repeat("x", 200<<10) + "\r\nB: 2\r\n\r\n"
	var fields []Field
	h, err := Scan(strings.NewReader(long), func(f *Field) error {
		f.Value = bytes.Clone(f.Value)
		fields = append(fields, *f)
		return nil
	})
	if err != nil || len(fields) != 2 || !h.Ended {
		t.Fatal(h, err)
	}
	if f := fields[0]; !f.Cut || len(f.Value) > MaxValue || f.Span.End != 200<<10+5 || f.Longest != 200<<10+3 {
		t.Errorf("cut %v, kept %d, span %v, longest %d", f.Cut, len(f.Value), f.Span, f.Longest)
	}
	if f := fields[1]; f.Cut || string(f.Value) != " 2" {
		t.Errorf("got %+v", f)
	}
}

func TestAHeaderBeyondTheLimitsIsReadUpToThem(t *testing.T) {
	many := strings.Repeat("A: 1\r\n", MaxFields+1)
	h, fields := scanned(t, strings.NewReader(many))
	if !h.Over || h.Ended || len(fields) != MaxFields || h.Octets != 6*MaxFields {
		t.Errorf("got %+v", h)
	}
	if h, _ := scanned(t, strings.NewReader(many[6:]+"\r\n")); h.Over || !h.Ended {
		t.Errorf("exactly as many as may be: %+v", h)
	}
	large := "A: 1\r\nB: " + strings.Repeat("x", MaxOctets) + "\r\n\r\n"
	h, fields = scanned(t, strings.NewReader(large))
	if !h.Over || len(fields) != 1 || h.Octets != 6 {
		t.Errorf("got %+v with %d fields", h, len(fields))
	}
}

func TestErrorsOfReaderAndVisitorComeBack(t *testing.T) {
	broken, enough := errors.New("broken"), errors.New("enough")
	_, err := Scan(io.MultiReader(strings.NewReader("A: 1\r\n"), iotest.ErrReader(broken)), func(*Field) error { return nil })
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, err := Scan(strings.NewReader("A: 1\r\nB: 2\r\n\r\n"), func(*Field) error { return enough }); err != enough {
		t.Errorf("got %v", err)
	}
	if _, err := Read(mta.Content{Open: func() (io.ReadCloser, error) { return nil, broken }}, nil); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// The spans cover the header without gap or overlap, and leaving some out leaves all else as it is.
func FuzzScan(f *testing.F) {
	for _, s := range []string{"A: 1\r\n B\r\n\r\nbody", " x\r\nA\r\n: 1", "\r\n", "A:\n\nB", "\r\r\n\x00:", "a : b\r\n\t\r\n\r\n\r\n"} {
		f.Add([]byte(s), uint64(0b101))
	}
	f.Fuzz(func(t *testing.T, in []byte, pick uint64) {
		var at int64
		var drop []mta.Span
		var left []byte
		h, err := Scan(iotest.HalfReader(bytes.NewReader(in)), func(f *Field) error {
			if f.Span.Start != at || f.Span.End <= at {
				t.Errorf("span %v after %d", f.Span, at)
			}
			at = f.Span.End
			if pick = pick>>1 | pick<<63; pick&1 == 1 {
				drop = append(drop, f.Span)
			} else {
				left = append(left, in[f.Span.Start:f.Span.End]...)
			}
			return nil
		})
		if err != nil || h.Octets != at {
			t.Fatalf("read %d of %d: %v", h.Octets, at, err)
		}
		if h.Ended && in[at] != '\n' && !bytes.HasPrefix(in[at:], []byte("\r\n")) || !h.Ended && !h.Over && at != int64(len(in)) {
			t.Errorf("it ended at %d: %+v", at, h)
		}
		left = append(left, in[at:]...)
		c := mta.Edit{Drop: drop}.Apply("", mta.Content{Size: int64(len(in)), Open: func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(in)), nil
		}})
		r, _ := c.Open()
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, left) {
			t.Errorf("%q became %q, want %q (%v)", in, got, left, err)
		}
	})
}

func BenchmarkScan(b *testing.B) {
	in := strings.Repeat("Received: from a.example (a.example [192.0.2.1])\r\n\tby b.example with ESMTP; Thu, 1 Jan 2026 00:00:00 +0000\r\n", 30) + "\r\nbody\r\n"
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Scan(strings.NewReader(in), func(*Field) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
