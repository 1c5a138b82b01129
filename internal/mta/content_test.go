package mta

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

func contentOf(s string, wrap func(io.Reader) io.Reader) Content {
	return Content{Size: int64(len(s)), Open: func() (io.ReadCloser, error) { return io.NopCloser(wrap(strings.NewReader(s))), nil }}
}

func plain(r io.Reader) io.Reader { return r }

func TestAnEditIsAppliedToTheOctet(t *testing.T) {
	const msg = "A: 1\r\nB: 2\r\nC: 3\r\n\r\nbody\r\n"
	end := int64(len(msg))
	tests := []struct {
		name, received string
		e              Edit
		want           string
	}{
		{"nothing", "", Edit{}, msg},
		{"fields above", "Received: x\r\n", Edit{Above: "Y: 1\r\n"}, "Y: 1\r\nReceived: x\r\n" + msg},
		{"the first field dropped", "", Edit{Drop: []Span{{0, 6}}}, msg[6:]},
		{"neighbours dropped", "R: x\r\n", Edit{Drop: []Span{{0, 6}, {6, 12}}}, "R: x\r\n" + msg[12:]},
		{"two apart", "", Edit{Drop: []Span{{0, 6}, {12, 18}}}, msg[6:12] + msg[18:]},
		{"all of it", "", Edit{Drop: []Span{{0, end}}}, ""},
		{"the end of it", "", Edit{Drop: []Span{{end - 6, end}}}, msg[:end-6]},
		{"empty spans", "", Edit{Drop: []Span{{0, 0}, {6, 6}}}, msg},
		{"out of order and beyond", "", Edit{Drop: []Span{{6, 12}, {0, 8}, {24, 1 << 40}, {-5, -1}}}, msg[:6] + msg[12:24]},
	}
	for _, tt := range tests {
		for how, wrap := range map[string]func(io.Reader) io.Reader{"whole": plain, "octet by octet": iotest.OneByteReader, "EOF with the last octets": iotest.DataErrReader} {
			t.Run(tt.name+", "+how, func(t *testing.T) {
				c := tt.e.Apply(tt.received, contentOf(msg, wrap))
				r, err := c.Open()
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(r)
				if err != nil || string(got) != tt.want {
					t.Errorf("got %q (%v), want %q", got, err, tt.want)
				}
				if c.Size != int64(len(tt.want)) {
					t.Errorf("size %d, want %d", c.Size, len(tt.want))
				}
			})
		}
	}
}

func TestAnEditedContentHasManyReaders(t *testing.T) {
	msg := strings.Repeat("X-Spam: yes\r\n", 1000) + "\r\nbody\r\n"
	c := Edit{Above: "A: 1\r\n", Drop: []Span{{0, 13}, {26, 39}}}.Apply("R: 1\r\n", contentOf(msg, iotest.HalfReader))
	want := "A: 1\r\nR: 1\r\n" + msg[13:26] + msg[39:]
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r, err := c.Open()
			if err != nil {
				t.Error(err)
				return
			}
			if err := iotest.TestReader(r, []byte(want)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestWhatACopyCannotReadIsAnError(t *testing.T) {
	broken := errors.New("broken")
	short := Content{Size: 100, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("abc")), nil }}
	failing := Content{Size: 100, Open: func() (io.ReadCloser, error) { return io.NopCloser(iotest.ErrReader(broken)), nil }}
	closed := Content{Size: 100, Open: func() (io.ReadCloser, error) { return nil, broken }}
	for _, tt := range []struct {
		name string
		c    Content
		want error
	}{{"short", short, io.ErrUnexpectedEOF}, {"failing", failing, broken}, {"closed", closed, broken}} {
		r, err := Edit{Drop: []Span{{0, 10}}}.Apply("", tt.c).Open()
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}

// Whatever the spans are, the size is exact, and what is left is what stood there, in order.
func FuzzApply(f *testing.F) {
	f.Add([]byte("A: 1\r\nB: 2\r\n\r\nbody"), int64(0), int64(6), int64(6), int64(12))
	f.Add([]byte("abc"), int64(-1), int64(2), int64(1), int64(99))
	f.Fuzz(func(t *testing.T, msg []byte, a, b, c, d int64) {
		e := Edit{Above: "x", Drop: []Span{{a, b}, {c, d}}}
		out := e.Apply("y", contentOf(string(msg), iotest.HalfReader))
		r, _ := out.Open()
		got, err := io.ReadAll(r)
		if err != nil || int64(len(got)) != out.Size {
			t.Fatalf("%d octets of %d: %v", len(got), out.Size, err)
		}
		rest, ok := bytes.CutPrefix(got, []byte("xy"))
		for i := 0; ok && len(rest) > 0; i++ { // a subsequence
			if ok = i < len(msg); ok && msg[i] == rest[0] {
				rest = rest[1:]
			}
		}
		if !ok {
			t.Errorf("%q became %q", msg, got)
		}
	})
}
