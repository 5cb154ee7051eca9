"""The program under test: it sends a welcome by SMTP."""

from __future__ import annotations

import smtplib
from email.message import EmailMessage


def sign_up(address: str, smtp_host: str, smtp_port: int) -> None:
    """Welcomes somebody, in text and HTML."""
    message = EmailMessage()
    message["From"] = "shop@example.org"
    message["To"] = address
    message["Subject"] = "Welcome to the shop"
    message.set_content(f"Hello {address},\n\nconfirm: https://shop.example.org/confirm?code=1234\n")
    message.add_alternative("<p>Hello, <a href='https://shop.example.org/confirm?code=1234'>confirm</a></p>", "html")
    with smtplib.SMTP(smtp_host, smtp_port, timeout=10) as client:
        client.send_message(message)
