package filter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"understudy/internal/mta"
)

const (
	maxSpamdLine   = 1 << 10
	maxSpamdFields = 32
	maxSymbols     = 64 << 10
)

// spamd asks SpamAssassin's spamd in the protocol of spamc (SPAMC/1.5), without a user: its settings hold for all.
type spamd struct {
	address     string
	rejectScore float64
}

func (s *spamd) ping(ctx context.Context) error {
	c, err := dial(ctx, s.address)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "PING SPAMC/1.5\r\n\r\n"); err != nil {
		return err
	}
	return spamdStatus(bufio.NewReaderSize(c, maxSpamdLine))
}

func (s *spamd) scan(ctx context.Context, m *message) ([]mta.Finding, error) {
	c, err := dial(ctx, s.address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	werr := spamdAsk(c, m)
	if errors.Is(werr, errContent) {
		return nil, werr
	}
	// What it said is worth more than that it did not listen: it answers early where it refuses to work.
	a, err := readSpamd(bufio.NewReaderSize(c, maxSpamdLine))
	if err != nil {
		return nil, errors.Join(err, werr)
	}
	if werr != nil {
		return nil, werr
	}
	return a.findings(s.rejectScore), nil
}

// spamdAsk writes the request. Our own Received field goes before the message, as it would stand before it at the
// primary: it is where spamd takes the client, the HELO and the reverse-path from.
func spamdAsk(c *conn, m *message) error {
	body, err := m.open()
	if err != nil {
		return err
	}
	defer body.Close()
	trace := m.received()
	w := bufio.NewWriterSize(c, 32<<10)
	fmt.Fprintf(w, "SYMBOLS SPAMC/1.5\r\nContent-length: %d\r\n\r\n%s", m.content.Size+int64(len(trace)), trace)
	if _, err := io.Copy(w, body); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return c.closeWrite()
}

// spamdAnswer is what SYMBOLS gives.
type spamdAnswer struct {
	spam             bool
	score, threshold float64
	symbols          string
}

func (a *spamdAnswer) findings(rejectScore float64) []mta.Finding {
	reject := rejectScore > 0 && a.score >= rejectScore
	if !a.spam && !reject {
		return nil
	}
	f := mta.Finding{
		Name: "spamd:spam", Action: mta.Mark, Text: "the message looks like spam",
		Detail: line(fmt.Sprintf("score %.4g of %.4g %s", a.score, a.threshold, a.symbols), maxDetail),
	}
	if reject {
		f.Action, f.Text = mta.Reject, "the message was found to be spam"
	}
	return []mta.Finding{f}
}

// readSpamd reads a response to SYMBOLS.
func readSpamd(r *bufio.Reader) (*spamdAnswer, error) {
	if err := spamdStatus(r); err != nil {
		return nil, err
	}
	var a *spamdAnswer
	for n := 0; ; n++ {
		l, err := readLine(r)
		if err != nil {
			return nil, err
		}
		if l == "" {
			break
		}
		if n == maxSpamdFields {
			return nil, errors.New("answer has too many fields")
		}
		name, value, _ := strings.Cut(l, ":")
		if strings.EqualFold(strings.TrimSpace(name), "Spam") {
			if a, err = parseSpam(value); err != nil {
				return nil, err
			}
		}
	}
	if a == nil {
		return nil, errors.New("answer does not say whether it is spam")
	}
	b, err := io.ReadAll(io.LimitReader(r, maxSymbols))
	if err != nil {
		return nil, err
	}
	a.symbols = string(b)
	return a, nil
}

// spamdStatus reads "SPAMD/1.1 0 EX_OK".
func spamdStatus(r *bufio.Reader) error {
	l, err := readLine(r)
	if err != nil {
		return err
	}
	f := strings.Fields(l)
	if len(f) < 2 || !strings.HasPrefix(f[0], "SPAMD/") {
		return fmt.Errorf("answer is not spamd's: %s", line(l, maxText))
	}
	if f[1] != "0" {
		return fmt.Errorf("answered %s", line(strings.Join(f[1:], " "), maxText))
	}
	return nil
}

// parseSpam reads "True ; 15.0 / 5.0".
func parseSpam(s string) (*spamdAnswer, error) {
	verdict, scores, ok1 := strings.Cut(s, ";")
	score, threshold, ok2 := strings.Cut(scores, "/")
	a := &spamdAnswer{}
	var err1, err2 error
	a.score, err1 = finite(score)
	a.threshold, err2 = finite(threshold)
	switch strings.ToLower(strings.TrimSpace(verdict)) {
	case "true", "yes":
		a.spam = true
	case "false", "no":
	default:
		ok1 = false
	}
	if !ok1 || !ok2 || err1 != nil || err2 != nil {
		return nil, fmt.Errorf("answer is no verdict: %s", line(s, maxText))
	}
	return a, nil
}

func finite(s string) (float64, error) {
	f, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err == nil && (math.IsNaN(f) || math.IsInf(f, 0)) {
		err = strconv.ErrRange
	}
	return f, err
}

// readLine reads one line that fits the reader's buffer, without its end.
func readLine(r *bufio.Reader) (string, error) {
	b, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", errors.New("answer has a line that is too long")
	case err == io.EOF:
		return "", io.ErrUnexpectedEOF
	case err != nil:
		return "", err
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}
