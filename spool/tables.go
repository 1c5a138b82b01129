package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/dgraph-io/badger/v4"
	sst "github.com/dgraph-io/badger/v4/table"
)

// Before Badger may open a folder it is looked at: some of what Badger does with damaged or half-made files would end
// the process, or delete what is still good.

// errNotBadger marks a folder that must not be given to Badger.
var errNotBadger = fmt.Errorf("%w: not to be opened", ErrDamaged)

// inspect makes a folder fit for Badger, or says why it is not. orphans are tables that its MANIFEST does not name:
// Badger will delete them.
func inspect(dir string) (orphans []string, err error) {
	if err := dropEmpty(dir); err != nil {
		return nil, err
	}
	named, err := manifestTables(dir)
	if err != nil {
		return nil, err
	}
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		return nil, err
	}
	for _, path := range tables {
		id, ok := sst.ParseFileID(path)
		if _, known := named[id]; !ok || !known {
			orphans = append(orphans, path)
			continue
		}
		if err := checkTable(path); passing(err) {
			return nil, err
		} else if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", errNotBadger, path, err)
		}
	}
	return orphans, nil
}

// dropEmpty removes logs that Badger made and had no time to size: it would not open with them.
func dropEmpty(dir string) error {
	for _, pattern := range []string{"*.mem", "*.vlog"} {
		logs, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, path := range logs {
			if fi, err := os.Stat(path); err != nil || fi.Size() > 0 {
				continue
			}
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// manifestTables reads which tables belong to a database. Without a MANIFEST Badger would begin a new one, and delete
// every table.
func manifestTables(dir string) (map[uint64]badger.TableManifest, error) {
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, os.ErrNotExist) {
		if isEmptyFolder(dir) {
			return nil, nil
		}
		return nil, fmt.Errorf("%w: %s has no MANIFEST", errNotBadger, dir)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, _, err := badger.ReplayManifestFile(f, 0, badgerOptions(dir, smallMemtable, nil, nil))
	if err != nil {
		return nil, fmt.Errorf("%w: MANIFEST: %w", errNotBadger, err)
	}
	return m.Tables, nil
}

// isEmptyFolder reports whether a folder has nothing that a message could be in.
func isEmptyFolder(dir string) bool {
	for _, pattern := range []string{badger.ManifestFilename, "*.sst", "*.mem"} {
		if found, err := filepath.Glob(filepath.Join(dir, pattern)); err != nil || len(found) > 0 {
			return false
		}
	}
	return true
}

// verifyTables reads every block.
func verifyTables(db *badger.DB) error {
	if err := guarded(db.VerifyChecksum); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// view is Badger's View, guarded.
func view(db *badger.DB, f func(*badger.Txn) error) error {
	return guarded(func() error { return db.View(f) })
}

// guarded makes an error of what would end the process: Badger panics over some of what it can't read, and it reads
// through mappings, where a bad sector is a signal (SIGBUS).
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: badger: panic: %v", ErrDamaged, p)
		}
	}()
	return f()
}

// saveOrphans keeps tables that Badger is about to delete. One that is whole may be all that is left of what a torn
// MANIFEST named.
func (s *Store) saveOrphans(g *generation, orphans []string, aside string) (keep bool, err error) {
	for _, path := range orphans {
		if checkTable(path) != nil {
			continue // half-written: its log is still there
		}
		if err := os.MkdirAll(aside, 0o700); err != nil {
			return keep, err
		}
		if err := os.Link(path, filepath.Join(aside, filepath.Base(path))); err != nil && !errors.Is(err, os.ErrExist) {
			return keep, err
		}
		keep = true
		s.log.Warn("table that is not in the MANIFEST was kept aside", slog.String("dir", g.dir), slog.String("file", filepath.Base(path)),
			slog.String("copy", aside))
	}
	return keep, nil
}

// checkTable reads all of a table, since Badger would read it through a mapping, and walks the footer: index, its length,
// its checksum, the checksum's length. Badger verifies what they say.
func checkTable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, f); err != nil {
		return err
	}
	at := fi.Size()
	length := func() (int64, error) {
		var b [4]byte
		if at -= 4; at < 0 {
			return 0, io.ErrUnexpectedEOF
		}
		if _, err := f.ReadAt(b[:], at); err != nil {
			return 0, err
		}
		return int64(binary.BigEndian.Uint32(b[:])), nil
	}
	for _, what := range []struct {
		name  string
		least int64
		most  int64
	}{{"checksum", 1, 64}, {"index", 8, fi.Size()}} {
		n, err := length()
		if err != nil {
			return err
		}
		if at -= n; n < what.least || n > what.most || at < 0 {
			return errors.New(what.name + " has an impossible length")
		}
	}
	return nil
}
