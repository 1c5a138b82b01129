package filter

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"understudy/internal/mta"
)

const (
	clamdChunk = 32 << 10
	maxClamd   = 4 << 10 // an answer is a signature's name and a few words
)

// clamd asks ClamAV's daemon by INSTREAM, in its z form: commands and answers end with a NUL.
type clamd struct{ address string }

func (c *clamd) ping(ctx context.Context) error {
	cn, err := dial(ctx, c.address)
	if err != nil {
		return err
	}
	defer cn.Close()
	if _, err := io.WriteString(cn, "zPING\x00"); err != nil {
		return err
	}
	a, err := readClamd(cn)
	if err == nil && a != "PONG" {
		err = fmt.Errorf("answered %s", line(a, maxText))
	}
	return err
}

func (c *clamd) scan(ctx context.Context, m *message) ([]mta.Finding, error) {
	cn, err := dial(ctx, c.address)
	if err != nil {
		return nil, err
	}
	defer cn.Close()
	werr := clamdAsk(cn, m)
	if errors.Is(werr, errContent) {
		return nil, werr
	}
	// It answers and closes in the middle of a stream that is too long for it.
	a, err := readClamd(cn)
	if err != nil {
		return nil, errors.Join(err, werr)
	}
	found, err := clamdFindings(a)
	if err == nil && found == nil && werr != nil {
		err = werr // it can't know that the rest is clean
	}
	return found, err
}

// clamdAsk streams the message in chunks, each with its length before it; one of no octets ends it.
func clamdAsk(w io.Writer, m *message) error {
	body, err := m.open()
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.WriteString(w, "zINSTREAM\x00"); err != nil {
		return err
	}
	buf := make([]byte, 4+clamdChunk)
	for {
		n, err := io.ReadFull(body, buf[4:])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
		binary.BigEndian.PutUint32(buf, uint32(n))
		if _, err := w.Write(buf[:4+n]); err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
	}
}

// readClamd reads up to the NUL.
func readClamd(r io.Reader) (string, error) {
	b, err := bufio.NewReaderSize(r, maxClamd).ReadSlice(0)
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", fmt.Errorf("answered more than %d octets", maxClamd)
	case err == io.EOF:
		return "", io.ErrUnexpectedEOF
	case err != nil:
		return "", err
	}
	return strings.TrimSpace(string(b[:len(b)-1])), nil
}

// clamdFindings reads "stream: OK", "stream: SIGNATURE FOUND" or "… ERROR".
func clamdFindings(answer string) ([]mta.Finding, error) {
	a := strings.TrimPrefix(answer, "stream: ")
	if a == "OK" {
		return nil, nil
	}
	if sig, ok := strings.CutSuffix(a, " FOUND"); ok {
		sig = word(sig)
		return []mta.Finding{{Name: "clamd:" + sig, Action: mta.Reject, Text: "the message has a virus: " + sig}}, nil
	}
	if strings.Contains(a, "size limit exceeded") {
		return nil, errTooLarge
	}
	return nil, fmt.Errorf("answered %s", line(answer, maxText))
}
