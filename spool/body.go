package spool

import (
	"context"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
)

// inlineMax is the most content that lies in the database, in one commit with its record. More goes to a file of its
// own: written by write(2), a full disk is an error there, its space comes back at once, and neither a slow sender nor
// a slow reader needs more than one buffer.
const inlineMax = 128 << 10

func checksum(b []byte) uint64 { return xxhash.Sum64(b) }

// verify holds content in memory against its record.
func verify(b []byte, m *message) error {
	if int64(len(b)) != m.size {
		return fmt.Errorf("%w: content of %d octets, %d were stored", ErrDamaged, len(b), m.size)
	}
	if sum := checksum(b); sum != m.sum {
		return fmt.Errorf("%w: checksum %016x, stored was %016x", ErrDamaged, sum, m.sum)
	}
	return nil
}

// verifier passes content on and ends in ErrDamaged if it is not what the record says. The last piece is held back until
// the whole was found right, so who counts octets and never asks for io.EOF can't take damaged content for good either.
type verifier struct {
	r    io.Reader
	c    io.Closer
	m    *message
	sum  *xxhash.Digest
	read int64
	err  error
}

func newVerifier(r io.Reader, c io.Closer, m *message) *verifier {
	return &verifier{r: r, c: c, m: m, sum: xxhash.New()}
}

func (v *verifier) Read(b []byte) (int, error) {
	if v.err != nil || len(b) == 0 {
		return 0, v.err
	}
	if left := v.m.size - v.read; int64(len(b)) > left {
		b = b[:left]
	}
	n := 0
	if len(b) > 0 {
		n, v.err = v.r.Read(b)
	}
	v.sum.Write(b[:n])
	v.read += int64(n)
	if v.err == io.EOF && v.read < v.m.size {
		v.err = fmt.Errorf("%w: content ends after %d of %d octets", ErrDamaged, v.read, v.m.size)
	}
	if v.read == v.m.size {
		v.err = v.end()
	}
	switch v.err {
	case nil:
		return n, nil
	case io.EOF:
		if n > 0 {
			return n, nil // io.EOF is said next time
		}
		return 0, io.EOF
	}
	return 0, v.err
}

// end is asked once all octets were read; io.EOF is its "all is well".
func (v *verifier) end() error {
	if sum := v.sum.Sum64(); sum != v.m.sum {
		return fmt.Errorf("%w: checksum %016x, stored was %016x", ErrDamaged, sum, v.m.sum)
	}
	var one [1]byte
	if n, err := io.ReadFull(v.r, one[:]); n > 0 || err != io.EOF {
		return fmt.Errorf("%w: content goes on after %d octets (%v)", ErrDamaged, v.m.size, err)
	}
	return io.EOF
}

func (v *verifier) Close() error { return v.c.Close() }

// readerCtx stops reading once its context is done.
type readerCtx struct {
	ctx context.Context
	r   io.Reader
}

func (r readerCtx) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

// fill reads until b is full. Unlike io.ReadFull it hands the reader's error on as it is: io.EOF alone is the end of a
// message, and io.ErrUnexpectedEOF says that it was cut short.
func fill(r io.Reader, b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m, err := r.Read(b[n:])
		n += m
		if err != nil && (n < len(b) || err != io.EOF) {
			return n, err
		}
	}
	return n, nil
}
