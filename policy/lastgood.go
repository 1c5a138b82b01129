package policy

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// A last good copy is a file: one line of JSON (copyHead), the recipients of each domain, one folded local part a
// line, and the SHA-256 of all that. What was written only in part is not believed.
const copyVersion = 1

type copyHead struct {
	Version int          `json:"understudy_recipients"`
	Source  string       `json:"source"`
	At      time.Time    `json:"at"`
	Tag     tag          `json:"tag"`
	Serves  []string     `json:"serves"`
	Domains []copyDomain `json:"domains"`
}

type copyDomain struct {
	Name     string   `json:"name"`
	N        int      `json:"n"`
	All      bool     `json:"all,omitempty"`
	Patterns []string `json:"patterns,omitempty"`
}

func copyFile(dir, source string) string { return filepath.Join(dir, source+".recipients") }

// saveCopy puts a copy in the place of the last one, durably or not at all. One at a time may be under way for a source.
func saveCopy(dir, source string, c *content) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("policy: keep %s: %w", source, err)
	}
	f, err := os.OpenFile(copyFile(dir, source)+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) // of a crash, too
	if err != nil {
		return fmt.Errorf("policy: keep %s: %w", source, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("policy: keep %s: %w", source, err)
		}
	}()
	if err := writeCopy(f, source, c); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), copyFile(dir, source)); err != nil {
		return err
	}
	return syncFolder(dir)
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func writeCopy(w io.Writer, source string, c *content) error {
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	head := copyHead{Version: copyVersion, Source: source, At: c.at.UTC(), Tag: c.tag, Serves: c.serves}
	domains := slices.Sorted(maps.Keys(c.sets))
	for _, name := range domains {
		s := c.sets[name]
		d := copyDomain{Name: name, N: s.n, All: s.all}
		for _, re := range s.patterns {
			d.Patterns = append(d.Patterns, re.String())
		}
		head.Domains = append(head.Domains, d)
	}
	if err := json.NewEncoder(out).Encode(head); err != nil { // ends with a newline
		return err
	}
	for _, name := range domains {
		for local := range c.sets[name].members() {
			out.Write(local) // no local part holds a newline (mta.Path); errors stay until Flush
			out.WriteByte('\n')
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%x\n", sum.Sum(nil))
	return err
}

// loadCopy reads the last good copy, and when it was last found to be the present one. Without any it is
// fs.ErrNotExist.
func loadCopy(dir, source string) (*content, time.Time, error) {
	f, err := os.Open(copyFile(dir, source))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, time.Time{}, err
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("policy: last good copy of %s: %w", source, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("policy: last good copy of %s: %w", source, err)
	}
	c, err := readCopy(f, source)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("policy: last good copy of %s: %w", source, err)
	}
	checked := info.ModTime() // touchCopy sets it
	if now := time.Now(); checked.After(now) {
		checked = now
	}
	return c, checked, nil
}

// touchCopy notes that the copy was found to be the present one, without writing it again.
func touchCopy(dir, source string, now time.Time) error {
	if err := os.Chtimes(copyFile(dir, source), time.Time{}, now); err != nil {
		return fmt.Errorf("policy: keep %s: %w", source, err)
	}
	return nil
}

var errCopyDamaged = errors.New("is damaged")

func readCopy(r io.Reader, source string) (*content, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	sum := sha256.New()
	line := func() ([]byte, error) {
		b, err := in.ReadBytes('\n')
		if err != nil {
			return nil, errCopyDamaged
		}
		sum.Write(b)
		return b[:len(b)-1], nil
	}
	first, err := line()
	if err != nil {
		return nil, err
	}
	var head copyHead
	if err := json.Unmarshal(first, &head); err != nil {
		return nil, errCopyDamaged
	}
	if head.Version != copyVersion || head.Source != source {
		return nil, fmt.Errorf("is version %d of %q, want version %d of %q", head.Version, head.Source, copyVersion, source)
	}
	l, compiled := newList(source, head.Serves), map[string]*regexp.Regexp{}
	for _, d := range head.Domains {
		if err := readCopyDomain(l, d, compiled, line); err != nil {
			return nil, err
		}
	}
	want := hex.AppendEncode(nil, sum.Sum(nil))
	if last, err := in.ReadBytes('\n'); err != nil || !bytes.Equal(bytes.TrimSuffix(last, []byte("\n")), want) {
		return nil, errCopyDamaged
	}
	return newContent(l, head.Tag, head.At)
}

func readCopyDomain(l *list, d copyDomain, compiled map[string]*regexp.Regexp, line func() ([]byte, error)) error {
	m := l.members[d.Name]
	if m == nil {
		return errCopyDamaged
	}
	m.all = d.All
	for _, text := range d.Patterns {
		if compiled[text] == nil { // a list has the same ones for each of its domains
			re, err := regexp.Compile(text)
			if err != nil {
				return errCopyDamaged
			}
			compiled[text] = re
		}
		m.patterns = append(m.patterns, compiled[text])
	}
	for range d.N {
		local, err := line()
		if err != nil || len(local) == 0 || len(local) > 255 {
			return errCopyDamaged
		}
		l.add(d.Name, string(local))
	}
	return nil
}
