"""What SageMaker gives a training container and expects of it."""
