package spool

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// octets gives n that are random.
func octets(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestASumOfAnyPieceIsTheOneThatGoingOverItGives(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 2))
		b := octets(r, r.IntN(200<<10)+1)
		s := newSums(b)
		for range 500 {
			from := r.IntN(len(b) + 1)
			to := from + r.IntN(len(b)-from+1)
			if r.IntN(4) == 0 { // at a mark, or beside one
				to = min(max(from, to/sumStep*sumStep+r.IntN(3)-1), len(b))
			}
			sum := r.Uint32()
			if got, want := s.update(sum, from, to), crc32.Update(sum, castagnoli, b[from:to]); got != want {
				t.Fatalf("seed %d: %08x from %d to %d of %d: %08x, want %08x", seed, sum, from, to, len(b), got, want)
			}
		}
	}
}

func TestAShiftIsWhatZerosDoToADifference(t *testing.T) {
	p := newPowers()
	zeros := make([]byte, 1<<24+257)
	for _, n := range []int64{0, 1, 2, 255, 256, 257, 65535, 65536, 65537, 1<<24 - 1, 1 << 24, 1<<24 + 257} {
		for _, a := range []uint32{0, 1, one, octet, 0xdeadbeef, 0xffffffff} {
			want := crc32.Update(a, castagnoli, zeros[:n]) ^ crc32.Update(0, castagnoli, zeros[:n])
			if got := p.shift(a, n); got != want {
				t.Errorf("%08x by %d octets: %08x, want %08x", a, n, got, want)
			}
		}
	}
	// What no slice of a test is as long as: the way may be split anywhere.
	const far = int64(2*(1<<32) + 12345)
	if got, want := p.shift(0xdeadbeef, far), p.shift(p.shift(p.shift(0xdeadbeef, 1<<32-7), 1<<32+7), 12345); got != want {
		t.Errorf("by %d octets: %08x, want %08x", far, got, want)
	}
}

func TestWhatASumCostsDoesNotHangOnItsLength(t *testing.T) {
	b := make([]byte, 1<<20)
	s := newSums(b)
	s.update(0, 0, len(b))
	for _, from := range []int{0, 1, sumStep, 1000000} {
		before := s.summed
		s.update(0, from, len(b)-1)
		if n := s.summed - before; n > 2*sumStep {
			t.Errorf("from %d on: %d octets were gone over", from, n)
		}
	}
	if s.summed > int64(len(b)+10*sumStep) {
		t.Errorf("%d octets were gone over", s.summed)
	}
}

func FuzzSums(f *testing.F) {
	f.Add([]byte("Subject: hello\r\n\r\nhello\r\n"), uint32(1234), uint(3), uint(20), uint8(100))
	f.Fuzz(func(t *testing.T, b []byte, sum uint32, from, to uint, times uint8) {
		for n := len(b); times > 0 && len(b) < 1<<20; times-- {
			b = append(b, b[:n]...) // longer than a fuzzer likes to make it
		}
		from %= uint(len(b) + 1)
		to = from + to%(uint(len(b))-from+1)
		if got, want := newSums(b).update(sum, int(from), int(to)), crc32.Update(sum, castagnoli, b[from:to]); got != want {
			t.Errorf("%08x from %d to %d of %d: %08x, want %08x", sum, from, to, len(b), got, want)
		}
	})
}
