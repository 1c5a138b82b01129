package inbound

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

func TestBodyGivesBackWhatItTook(t *testing.T) {
	const head = headChunks * chunkSize
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, head - 1, head, head + 1, 3 * head} {
		for _, taken := range []int64{0, allChunks - 1, allChunks} { // also when others have all the memory
			var chunks, files atomic.Int64
			chunks.Store(taken)
			dir := t.TempDir()
			b := &body{dir: dir, chunks: &chunks, files: &files}
			want := make([]byte, size)
			for i := range want {
				want[i] = byte(rand.Uint32())
			}
			for rest := want; len(rest) > 0; {
				n := min(len(rest), 1+rand.IntN(2*chunkSize))
				if m, err := b.Write(rest[:n]); m != n || err != nil {
					t.Fatal(m, err)
				}
				rest = rest[n:]
			}
			if names, err := os.ReadDir(dir); len(names) != 0 || err != nil {
				t.Errorf("%d names in the folder, %v", len(names), err)
			}
			want = append([]byte("before"), want...)
			for name, read := range map[string]func(*bodyReader) ([]byte, error){
				"Read": func(r *bodyReader) ([]byte, error) { return io.ReadAll(struct{ io.Reader }{r}) },
				"WriteTo": func(r *bodyReader) ([]byte, error) {
					var out bytes.Buffer
					_, err := r.WriteTo(&out)
					return out.Bytes(), err
				},
			} {
				r := b.reader("before")
				if got, err := read(r); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d octets by %s with %d chunks taken: got %d, %v", size, name, taken, len(got), err)
				}
			}
			if err := b.Close(); err != nil || chunks.Load() != taken || files.Load() != 0 {
				t.Errorf("after Close: %v, %d chunks in use, want %d, and %d octets in files", err, chunks.Load(), taken, files.Load())
			}
		}
	}
}

func TestBodyWithoutAFolderIsAnError(t *testing.T) {
	var chunks, files atomic.Int64
	chunks.Store(allChunks)
	b := &body{files: &files, dir: filepath.Join(t.TempDir(), "missing"), chunks: &chunks}
	defer b.Close()
	if _, err := b.Write([]byte("x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestSweepRemovesWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "understudy-content-123"), []byte("x"))
	write(t, filepath.Join(dir, "another"), []byte("x"))
	if err := sweepUnnamed(dir); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 || names[0].Name() != "another" {
		t.Errorf("left: %v, %v", names, err)
	}
}
