//go:build !linux

package spool

import (
	"errors"
	"os"
)

// Other systems are for trying things out: the promise is kept as far as os.File.Sync keeps it, and a full disk is not
// guarded against in advance.

var errNoPrealloc = errors.New("not on this system")

func preallocate(*os.File, int64) error { return errNoPrealloc }

func datasync(f *os.File) error { return f.Sync() }

func writePieces(f *os.File, pieces [][]byte, at int64) error {
	for _, p := range pieces {
		if _, err := f.WriteAt(p, at); err != nil {
			return err
		}
		at += int64(len(p))
	}
	return nil
}
