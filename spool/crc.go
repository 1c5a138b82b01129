package spool

import "hash/crc32"

// A CRC is a remainder: of octets read as a polynomial over GF(2), divided by one of degree 32. Division is linear, so two
// sums that begin differently and go over the same n octets end as far apart as they began, times x^(8n) modulo that
// polynomial, whatever the octets are. With Q(i) for the sum of b[:i], which goes over b[i:k] to end at Q(k), that is
//
//	Update(c, b[i:k]) = Q(k) ^ (c ^ Q(i)) · x^(8(k-i))
//
// The inversions of hash/crc32 before and after cancel out: they are on both sides of each difference.

// sums gives the CRC-32C of any piece of b for the price of 2*sumStep octets at most, besides one pass over b: what
// senders wrote may claim to be a long frame as often as it likes.
type sums struct {
	b      []byte
	marks  []uint32 // the sums of b[:i*sumStep], as far as they were asked for
	powers *powers
	summed int64 // octets that were gone over
}

const sumStep = 512 // a mark for each: 0.8 % of b

func newSums(b []byte) *sums { return &sums{b: b, marks: []uint32{0}, powers: newPowers()} }

// update is crc32.Update(sum, castagnoli, b[from:to]).
func (s *sums) update(sum uint32, from, to int) uint32 {
	if to-from <= 2*sumStep {
		return s.over(sum, from, to)
	}
	return s.before(to) ^ s.powers.shift(sum^s.before(from), int64(to-from))
}

// before is the sum of b[:n].
func (s *sums) before(n int) uint32 {
	last := n / sumStep
	for i := len(s.marks); i <= last; i++ {
		s.marks = append(s.marks, s.over(s.marks[i-1], (i-1)*sumStep, i*sumStep))
	}
	return s.over(s.marks[last], last*sumStep, n)
}

func (s *sums) over(sum uint32, from, to int) uint32 {
	s.summed += int64(to - from)
	return crc32.Update(sum, castagnoli, s.b[from:to])
}

// powers holds x^(8·d·256^i) at [i][d]: one product for each octet of a length.
type powers [5][256]uint32

// one and octet are 1 and x^8: a polynomial's highest bit is its lowest coefficient, as in hash/crc32.
const (
	one   = 1 << 31
	octet = 1 << 23
)

func newPowers() *powers {
	var p powers
	unit := uint32(octet)
	for i := range p {
		p[i][0] = one
		for d := 1; d < len(p[i]); d++ {
			p[i][d] = multiply(p[i][d-1], unit)
		}
		unit = multiply(p[i][255], unit)
	}
	return &p
}

// shift is a·x^(8n). A length is below 256^5: a frame's are of 4 octets.
func (p *powers) shift(a uint32, n int64) uint32 {
	for i := 0; n > 0; i, n = i+1, n>>8 {
		a = multiply(p[i][n&255], a)
	}
	return a
}

// multiply is a·b modulo the polynomial.
func multiply(a, b uint32) (product uint32) {
	for ; a != 0; a <<= 1 {
		product ^= b & -(a >> 31)
		b = b>>1 ^ crc32.Castagnoli&-(b&1) // b·x
	}
	return product
}
