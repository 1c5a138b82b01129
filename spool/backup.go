package spool

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"time"

	"understudy/internal/mta"
)

// A backup is a tar file: backup.json; for each message ID/record, ID/progress if it has some, and ID/content; at last
// end.json, without which it is not whole.
const (
	backupVersion = 2
	backupHead    = "backup.json"
	backupEnd     = "end.json"
)

type backupInfo struct {
	Version  int       `json:"version"`
	Made     time.Time `json:"made"`
	Messages int       `json:"messages"` // in end.json: how many there are
}

// Skipped is a message that a backup or a restore left out.
type Skipped struct {
	ID   mta.ID `json:"id"`
	Text string `json:"text"`
}

// Transfer is what Backup wrote or Restore took in.
type Transfer struct {
	Messages int       `json:"messages"`
	Bytes    int64     `json:"bytes"`
	Present  int       `json:"present"` // Restore: were there already
	Skipped  []Skipped `json:"skipped,omitempty"`
}

// Backup writes all messages to w, in clear, while mail goes on: each message is as it was when its turn came. What
// can't be read is left out and told.
func (s *Store) Backup(ctx context.Context, w io.Writer, progress func(done, total int)) (*Transfer, error) {
	t, err := s.backup(ctx, w, progress)
	if err != nil {
		return t, fmt.Errorf("spool: backup: %w", err)
	}
	return t, nil
}

func (s *Store) backup(ctx context.Context, w io.Writer, progress func(done, total int)) (*Transfer, error) {
	t := &Transfer{}
	ids, err := s.allIDs(ctx)
	if err != nil {
		return t, err
	}
	out := tar.NewWriter(w)
	info := backupInfo{Version: backupVersion, Made: time.Now().UTC()}
	if err := writeInfo(out, backupHead, info); err != nil {
		return t, err
	}
	for i, id := range ids {
		if err := s.backupMessage(ctx, out, id, t); err != nil {
			return t, err
		}
		if progress != nil && (i%100 == 99 || i == len(ids)-1) {
			progress(i+1, len(ids))
		}
	}
	info.Messages = t.Messages
	if err := writeInfo(out, backupEnd, info); err != nil {
		return t, err
	}
	return t, out.Close()
}

func writeInfo(out *tar.Writer, name string, info backupInfo) error {
	b, err := json.Marshal(info)
	if err != nil {
		return err
	}
	return writeMember(out, name, info.Made, append(b, '\n'))
}

func writeMember(out *tar.Writer, name string, at time.Time, b []byte) error {
	if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(b)), ModTime: at}); err != nil {
		return err
	}
	_, err := out.Write(b)
	return err
}

// backupMessage reads the content twice: nothing is written of a message that turns out damaged.
func (s *Store) backupMessage(ctx context.Context, out *tar.Writer, id mta.ID, t *Transfer) error {
	_, err := s.readWhole(ctx, id)
	var m *message
	var p *progress
	if err == nil {
		m, p, err = s.readSafe(ctx, id)
	}
	var content io.ReadCloser
	if err == nil {
		content, err = s.Body(ctx, id)
	}
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case errors.Is(err, ErrClosed):
		return err
	case ctx.Err() != nil:
		return errors.Join(ctx.Err(), closeIf(content))
	case err != nil:
		t.Skipped = append(t.Skipped, Skipped{ID: id, Text: err.Error()})
		return nil
	}
	defer content.Close()
	name := id.String()
	m.at, m.file, m.seal = 0, 0, false // of no meaning elsewhere
	if err := writeMember(out, path.Join(name, "record"), m.env.Received, m.encode()); err != nil {
		return err
	}
	if p.rev > 0 {
		if err := writeMember(out, path.Join(name, "progress"), m.env.Received, p.encode()); err != nil {
			return err
		}
	}
	head := &tar.Header{Name: path.Join(name, "content"), Mode: 0o600, Size: m.size, ModTime: m.env.Received}
	if err := out.WriteHeader(head); err != nil {
		return err
	}
	n, err := io.Copy(out, content)
	t.Messages++
	t.Bytes += n
	return err
}

func closeIf(c io.Closer) error {
	if c == nil {
		return nil
	}
	return c.Close()
}

func (s *Store) readSafe(ctx context.Context, id mta.ID) (*message, *progress, error) {
	if err := s.enter(ctx); err != nil {
		return nil, nil, err
	}
	defer s.leave()
	return s.read(id)
}

// Restore takes in the messages of a backup. What is there already stays as it is; what was delivered since the backup
// was made is delivered again. Reserve and quotas hold.
func (s *Store) Restore(ctx context.Context, r io.Reader, progress func(done int)) (*Transfer, error) {
	t := &Transfer{}
	if err := s.restore(ctx, tar.NewReader(r), t, progress); err != nil {
		return t, fmt.Errorf("spool: restore: after %d messages: %w", t.Messages, err)
	}
	return t, nil
}

func (s *Store) restore(ctx context.Context, in *tar.Reader, t *Transfer, progress func(done int)) error {
	var info backupInfo
	if err := readInfo(in, backupHead, &info); err != nil {
		return err
	}
	if info.Version > backupVersion {
		return fmt.Errorf("backup has version %d; this release knows up to %d", info.Version, backupVersion)
	}
	var m restoring
	for {
		head, err := in.Next()
		if err == io.EOF {
			return errors.New("backup is not whole: it has no end")
		}
		if err != nil {
			return err
		}
		if head.Name == backupEnd {
			return nil
		}
		done, err := m.member(head, in)
		if err != nil {
			return fmt.Errorf("%s: %w", head.Name, err)
		}
		if !done {
			continue
		}
		if err := s.restoreMessage(ctx, &m, in, t); err != nil {
			return fmt.Errorf("%s: %w", head.Name, err)
		}
		if n := t.Messages + t.Present; progress != nil && n%100 == 0 {
			progress(n)
		}
		m = restoring{}
	}
}

func readInfo(in *tar.Reader, name string, info *backupInfo) error {
	head, err := in.Next()
	if err != nil {
		return err
	}
	if head.Name != name {
		return fmt.Errorf("not a backup of a spool: it begins with %q", head.Name)
	}
	return json.NewDecoder(io.LimitReader(in, 64<<10)).Decode(info)
}

// restoring is the message that is being read from a backup.
type restoring struct {
	msg *message
	p   *progress
}

// maxMember bounds what of a backup is read into memory at once.
const maxMember = 64 << 20

// member takes one file of a message; done means that its content is next.
func (m *restoring) member(head *tar.Header, in io.Reader) (done bool, err error) {
	name := path.Base(head.Name)
	if name == "content" {
		if m.msg == nil || head.Size != m.msg.size {
			return false, fmt.Errorf("%w: content without its record", ErrDamaged)
		}
		return true, nil
	}
	b, err := io.ReadAll(io.LimitReader(in, maxMember))
	if err != nil {
		return false, err
	}
	switch name {
	case "record":
		m.msg, err = decodeMessage(b)
	case "progress":
		if m.msg == nil {
			return false, fmt.Errorf("%w: progress without its record", ErrDamaged)
		}
		m.p, err = decodeProgress(b, m.msg.env)
	default:
		err = errors.New("does not belong into a backup")
	}
	return false, err
}

func (s *Store) restoreMessage(ctx context.Context, m *restoring, in io.Reader, t *Transfer) error {
	if m.p != nil && m.p.ended() {
		return nil
	}
	fresh, err := s.take(ctx, m.msg.env, m.p, newVerifier(in, io.NopCloser(in), m.msg))
	if err != nil {
		return err
	}
	if !fresh {
		t.Present++
		return nil
	}
	t.Messages++
	t.Bytes += m.msg.size
	return nil
}
