package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"understudy/internal/admin"
)

func (a *app) spoolCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "spool",
		Short: "Look after the store itself",
	}
	cmd.AddCommand(a.spoolStatsCmd(), a.spoolVerifyCmd(), a.spoolBackupCmd(), a.spoolRestoreCmd())
	return cmd
}

func (a *app) spoolStatsCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "stats",
		Short: "Show how full it is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			u, err := c.Usage(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(u)
			}
			return a.table([][]any{
				{"messages", u.Messages},
				{"content", octets(u.Bytes)},
				{"on disk", octets(u.DiskUsed)},
				{"free on disk", octets(u.DiskFree)},
				{"kept in reserve", octets(u.Reserve)},
				{"files open", fmt.Sprintf("%d of %d", u.FilesOpen, u.FilesMax)},
			})
		},
	}
}

func (a *app) spoolVerifyCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Read everything that is stored and say what is damaged",
		Long:  "Read everything that is stored, while mail goes on, and hold it against its checksums. The exit code is 1 if\nanything is damaged; damaged messages are held, never delivered, never deleted.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			v, err := c.Verify(cmd.Context(), a.progress)
			a.endProgress()
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(v)
			} else {
				err = a.printVerification(v)
			}
			if err == nil && len(v.Damages) > 0 {
				return errSaid
			}
			return err
		},
	}
}

func (a *app) printVerification(v admin.Verification) error {
	for _, d := range v.Damages {
		if d.ID.IsZero() {
			fmt.Fprintf(a.out, "DAMAGED %s: %s\n", d.Dir, d.Text)
		} else {
			fmt.Fprintf(a.out, "DAMAGED message %s: %s\n", d.ID, d.Text)
		}
	}
	_, err := fmt.Fprintf(a.out, "%d messages, %s, read; %d damages\n", v.Messages, octets(v.Bytes), len(v.Damages))
	return err
}

// progress shows how far something is, to people only.
func (a *app) progress(p admin.Progress) {
	if a.json {
		return
	}
	if p.Total > 0 {
		fmt.Fprintf(a.err, "\r%d of %d ", p.Done, p.Total)
	} else {
		fmt.Fprintf(a.err, "\r%d ", p.Done)
	}
}

func (a *app) endProgress() {
	if !a.json {
		fmt.Fprint(a.err, "\r")
	}
}

func (a *app) spoolBackupCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Write all messages to a tar file, in clear, while mail goes on",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			c, err := a.client()
			if err != nil {
				return err
			}
			// Written beside and moved into place, so that a file with that name is a whole backup.
			f, err := os.OpenFile(args[0]+".part", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			defer os.Remove(f.Name())
			t, err := c.Backup(cmd.Context(), f)
			if err == nil {
				err = f.Sync()
			}
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			if err == nil {
				err = os.Rename(f.Name(), args[0])
			}
			if err != nil {
				return err
			}
			return a.printTransfer("saved", t)
		},
	}
}

func (a *app) spoolRestoreCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "restore FILE",
		Short: "Take the messages of a backup in; those that are there already stay as they are",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			t, err := c.Restore(cmd.Context(), io.Reader(f), a.progress)
			a.endProgress()
			if err != nil {
				return err
			}
			return a.printTransfer("restored", t)
		},
	}
}

func (a *app) printTransfer(what string, t admin.Transfer) error {
	if a.json {
		return a.printJSON(t)
	}
	for _, s := range t.Skipped {
		fmt.Fprintf(a.out, "left out %s: %s\n", s.ID, s.Text)
	}
	fmt.Fprintf(a.out, "%d messages, %s, %s", t.Messages, octets(t.Bytes), what)
	if t.Present > 0 {
		fmt.Fprintf(a.out, "; %d were there already", t.Present)
	}
	fmt.Fprintln(a.out)
	if len(t.Skipped) > 0 {
		return errSaid
	}
	return nil
}
